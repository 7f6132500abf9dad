"""Faults of the training loop and of the optimizer."""

from __future__ import annotations

from tests.mutations.injection import Fault

_WINE_OPTIMIZER = "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)\n"
_CNN_OPTIMIZER = "optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)\n"
_CNN_STEP = "            loss.backward()\n            optimizer.step()\n"

FAULTS = (
    Fault(
        "zero_grad dropped",
        ("missing-zero-grad",),
        {
            "mlp_wine": (("        optimizer.zero_grad()\n", ""),),
            "cnn_digits": (("            optimizer.zero_grad()\n", ""),),
            "functional_tensors": (("    optimizer.zero_grad()\n", ""),),
            "vit_digits": (("            optimizer.zero_grad()\n", ""),),
            "mobilenet_ema": (("            optimizer.zero_grad(set_to_none=True)\n", ""),),
        },
    ),
    Fault(
        "zero_grad between backward and step",
        ("grads-zeroed-before-step",),
        {
            "mlp_wine": (("loss.backward()\n", "loss.backward()\n        optimizer.zero_grad()\n"),),
            "cnn_digits": (("loss.backward()\n", "loss.backward()\n            optimizer.zero_grad()\n"),),
            "sparse_relu_cnn": (("loss.backward()\n", "loss.backward()\n        optimizer.zero_grad()\n"),),
            "diffusion_spiral": (("loss.backward()\n", "loss.backward()\n    optimizer.zero_grad()\n"),),
        },
    ),
    Fault(
        "optimizer.step missing",
        ("missing-optimizer-step",),
        {
            "cnn_digits": (("            optimizer.step()\n", ""),),
            "functional_tensors": (("    optimizer.step()\n", ""),),
            "graph_conv": (("    optimizer.step()\n", ""),),
            "lstm_sequence": (("        optimizer.step()\n", ""),),
        },
    ),
    Fault(
        "optimizer built before the head is replaced",
        ("parameter-not-in-optimizer",),
        {
            "mlp_wine": ((_WINE_OPTIMIZER, f"{_WINE_OPTIMIZER}model[-1] = nn.Linear(64, 3)\n"),),
            "cnn_digits": ((_CNN_OPTIMIZER, f"{_CNN_OPTIMIZER}    net.fc2 = nn.Linear(64, 10)\n"),),
            "vit_digits": (("    schedule = ", "    model.head = nn.Linear(32, 10)\n    schedule = "),),
            "resnet_bn": (("    scheduler = ", "    model.fc = nn.Linear(32, 10)\n    scheduler = "),),
        },
    ),
    Fault(
        "learning rate × 1000",
        ("learning-rate-too-high",),
        {
            "mlp_wine": (("lr=1e-3", "lr=1.0"),),
            "cnn_digits": (("lr=0.02", "lr=20.0"),),
            "lstm_sequence": (("lr=3e-3", "lr=3.0"),),
            "regression_standardised": (("lr=2e-3", "lr=2.0"),),
            "vit_digits": (("lr=2e-3", "lr=2.0"), ("max_lr=4e-3", "max_lr=4.0")),
        },
    ),
    Fault(
        "learning rate / 100,000",
        ("learning-rate-too-low",),
        {
            "mlp_wine": (("lr=1e-3", "lr=1e-8"),),
            "cnn_digits": (("lr=0.02", "lr=2e-7"),),
            "lstm_sequence": (("lr=3e-3", "lr=3e-8"),),
            "autoencoder_conv": (("lr=4e-3", "lr=4e-8"),),
        },
    ),
    Fault(
        "eval left on",
        ("eval-mode-in-training",),
        {
            "dataloader_dropout": (("        model.train()\n", ""),),
            "resnet_bn": (("        model.train()\n", "        model.eval()\n"),),
            "densenet_digits": (("    net.train()\n", ""),),
            "mlp_wine": (("    model.train()\n", ""),),
        },
    ),
    Fault(
        "loss negated",
        ("loss-diverging",),
        {
            "mlp_wine": (("loss = criterion(model(xb), yb)", "loss = -criterion(model(xb), yb)"),),
            "cnn_digits": (("loss = F.cross_entropy", "loss = -F.cross_entropy"),),
            "regression_standardised": (("loss = criterion(model(xb), yb)", "loss = -criterion(model(xb), yb)"),),
        },
    ),
    Fault(
        "gradients clipped to nothing",
        ("clip-too-small",),
        {
            "cnn_digits": (
                (
                    "loss.backward()\n",
                    "loss.backward()\n            nn.utils.clip_grad_norm_(net.parameters(), 1e-4)\n",
                ),
            ),
            "functional_tensors": (
                ("loss.backward()\n", "loss.backward()\n    torch.nn.utils.clip_grad_norm_(params, 1e-4)\n"),
            ),
            "resnet_bn": (
                (
                    "loss.backward()\n",
                    "loss.backward()\n            nn.utils.clip_grad_value_(model.parameters(), 1e-7)\n",
                ),
            ),
        },
    ),
    Fault(
        "schedule of epochs stepped per batch",
        ("lr-decays-too-fast",),
        {
            "cnn_digits": (
                (
                    _CNN_OPTIMIZER,
                    f"{_CNN_OPTIMIZER}    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.6)\n",
                ),
                (_CNN_STEP, f"{_CNN_STEP}            decay.step()\n"),
            ),
            "resnet_bn": (
                ("CosineAnnealingLR(optimizer, args.epochs)", "StepLR(optimizer, 1, gamma=0.5)"),
                ("        scheduler.step()\n", ""),
                ("            optimizer.step()\n", "            optimizer.step()\n            scheduler.step()\n"),
            ),
            "pinn_oscillator": (("gamma=0.9985", "gamma=0.9"),),
        },
    ),
    Fault(
        "weight decay × 10,000",
        ("over-regularised",),
        {
            "mlp_wine": (("weight_decay=1e-2", "weight_decay=100.0"),),
            "resnet_bn": (("weight_decay=5e-4", "weight_decay=5.0"),),
            "vit_digits": (("weight_decay=0.05", "weight_decay=500.0"),),
            "graph_conv": (("weight_decay=5e-4", "weight_decay=5.0"),),
        },
    ),
)
