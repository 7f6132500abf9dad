"""In which mode models are when a loss is made with them, and how a copy is brought into evaluation mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer


def in_evaluation(copy: nn.Module) -> nn.Module:
    """A copy of a user's model in evaluation mode: all of its modules, also where a `train` or `eval` of its own leaves some
    in training mode."""
    copy.eval()
    for module in copy.modules():
        module.training = False
    return copy


class Modes:
    """Counts passes in either mode, from a model's first one in evaluation mode on."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._passes: dict[
            str, list[int]
        ] = {}  # model → first step in evaluation mode, passes in training, in evaluation

    def note(self, module: nn.Module) -> None:
        """A loss was made with this module. Kept as facts of the model with most passes in evaluation mode: since its
        first one, how many in either mode. Modules without anything to train do not count."""
        observer = self._observer
        label = observer.names.root_of(module).label
        since = self._passes.get(label)
        if since is None:
            if module.training or not any(parameter.requires_grad for parameter in module.parameters()):
                return
            since = self._passes[label] = [observer.step, 0, 0]
        since[1 if module.training else 2] += 1
        if since[2] >= max(count[2] for count in self._passes.values()):
            names = ("eval_mode_from", "train_mode_passes", "eval_mode_passes")
            observer.facts.update(dict(zip(names, map(float, since), strict=True)), eval_mode_module=label)
