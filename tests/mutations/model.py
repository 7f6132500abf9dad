"""Faults of the architecture and of its initial weights."""

from __future__ import annotations

from tests.mutations.injection import Fault

_WINE = "model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))\n"
_HOUSE = "model = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))\n"
_KAIMING = 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")'

FAULTS = (
    Fault(
        "N(0, 1) weights",
        ("poor-initialization", "exploding-activations", "saturated-activation"),
        {
            "cnn_digits": ((_KAIMING, "nn.init.normal_(layer.weight)"),),
            "functional_tensors": (
                ("(torch.randn(fan_in, fan_out) * (2 / fan_in) ** 0.5)", "torch.randn(fan_in, fan_out)"),
                ("(torch.randn(64, 10) * 64**-0.5)", "torch.randn(64, 10)"),
            ),
            "mlp_wine": ((_WINE, f"{_WINE}for p in model.parameters():\n    nn.init.normal_(p)\n"),),
            "autoencoder_conv": (
                (
                    "    optimizer =",
                    "    for p in model.parameters():\n        torch.nn.init.normal_(p)\n    optimizer =",
                ),
            ),
        },
    ),
    Fault(
        "sigmoids in a deep net",
        ("vanishing-gradients", "vanishing-activations", "saturated-activation", "poor-initialization"),
        {
            "mlp_wine": (
                (
                    _WINE,
                    "layers = [nn.Linear(13, 64), nn.Sigmoid()]\nfor _ in range(9):\n    layers += [nn.Linear(64, 64), "
                    "nn.Sigmoid()]\nmodel = nn.Sequential(*layers, nn.Linear(64, 3))\n",
                ),
            ),
            "regression_standardised": (
                (
                    _HOUSE,
                    "hidden = [m for _ in range(9) for m in (nn.Linear(64, 64), nn.Sigmoid())]\n"
                    "model = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), *hidden, nn.Linear(64, 1))\n",
                ),
            ),
            "functional_tensors": (
                ("w3, b3 =", "deep = [(torch.randn(64, 64) * 0.125).requires_grad_() for _ in range(9)]\nw3, b3 ="),
                ("params = [", "params = [*deep, "),
                ("    return h @ w3", "    for w in deep:\n        h = torch.sigmoid(h @ w)\n    return h @ w3"),
            ),
        },
    ),
    Fault(
        "ReLUs dead by their bias",
        ("dead-relu",),
        {
            "cnn_digits": (("nn.init.zeros_(layer.bias)", "nn.init.constant_(layer.bias, -10.0)"),),
            "functional_tensors": (
                ("torch.zeros(96, requires_grad=True)", "torch.full((96,), -30.0, requires_grad=True)"),
            ),
            "sparse_relu_cnn": (
                ("self.out = nn.Linear(96, 10)", "self.out = nn.Linear(96, 10); self.fc.bias.data.fill_(-10)"),
            ),
            "mlp_wine": ((_WINE, f"{_WINE}model[3].bias.data.fill_(-10)\n"),),
        },
    ),
    Fault(
        "no nonlinearity",
        ("missing-nonlinearity",),
        {
            "mlp_wine": (("nn.ReLU(), nn.Dropout(0.2), ", ""), ("nn.ReLU(), ", "")),
            "regression_standardised": (("nn.SiLU(), ", ""),),
            "cnn_digits": (("F.relu(self.fc1(x.flatten(1)))", "self.fc1(x.flatten(1))"),),
            "functional_tensors": (
                ("torch.relu(batch @ w1 + b1)", "batch @ w1 + b1"),
                ("torch.relu(h @ w2 + b2)", "h @ w2 + b2"),
            ),
        },
    ),
    Fault(
        "all weights equal",
        ("symmetric-initialization",),
        {
            "cnn_digits": ((_KAIMING, "nn.init.constant_(layer.weight, 0.05)"),),
            "mlp_wine": ((_WINE, f"{_WINE}for p in model.parameters():\n    nn.init.zeros_(p)\n"),),
            "regression_standardised": (
                (_HOUSE, f"{_HOUSE}for p in model.parameters():\n    nn.init.constant_(p, 0.02)\n"),
            ),
        },
    ),
    Fault(
        "detach in the middle",
        ("detached-graph",),
        {
            "cnn_digits": (("x.flatten(1)", "x.detach().flatten(1)"),),
            "lstm_sequence": (("out[:, -1]", "out[:, -1].detach()"),),
            "resnet_bn": (("self.pool(x).flatten(1)", "self.pool(x.detach()).flatten(1)"),),
            "autoencoder_conv": (("self.decoder(self.encoder(x))", "self.decoder(self.encoder(x).detach())"),),
            "vit_digits": (("self.blocks(tokens)[:, 0]", "self.blocks(tokens).data[:, 0]"),),
        },
    ),
    Fault(
        "view instead of permute",
        ("wrong-reshape", "cross-sample-leakage", "causal-leak"),
        {
            "vit_digits": ((".flatten(2).transpose(1, 2)", ".flatten(2).view(len(images), 16, 32)"),),
            "bf16_autocast": ((".flatten(2).transpose(1, 2)", ".flatten(2).reshape(len(x), 16, -1)"),),
            "lstm_sequence": (
                ("nn.LSTM(n_in, hidden, batch_first=True)", "nn.LSTM(n_in, hidden)"),
                ("self.lstm(x)", "self.lstm(x.view(x.shape[1], x.shape[0], -1))"),
                ("out[:, -1]", "out[-1]"),
            ),
        },
    ),
    Fault(
        "layers in a plain list",
        ("unregistered-parameters", "parameter-not-in-optimizer"),
        {
            "gpt_small": (
                (
                    "nn.ModuleList(Block(dim, heads) for _ in range(layers))",
                    "[Block(dim, heads) for _ in range(layers)]",
                ),
            ),
            "activation_checkpointing": (
                (
                    "nn.ModuleList(ResidualBlock(dim) for _ in range(depth))",
                    "[ResidualBlock(dim) for _ in range(depth)]",
                ),
            ),
            "diffusion_spiral": (
                (
                    "nn.ModuleList([nn.Linear(width, width) for _ in range(3)])",
                    "[nn.Linear(width, width) for _ in range(3)]",
                ),
            ),
        },
    ),
    Fault(
        "dropout of 0.97",
        ("dropout-too-high",),
        {
            "mlp_wine": (("nn.Dropout(0.2)", "nn.Dropout(0.97)"),),
            "dataloader_dropout": (("nn.Dropout(0.3)", "nn.Dropout(0.97)"),),
            "gru_packed": (("nn.Dropout(0.1)", "nn.Dropout(0.97)"),),
        },
    ),
)
