"""Faults of the data and of how it is fed."""

from __future__ import annotations

from tests.mutations.injection import Fault

FAULTS = (
    Fault(
        "NaN in one sample",
        ("nan-input",),
        {
            "mlp_wine": (("loader = ", 'train.tensors[0][7, 3] = float("nan")\nloader = '),),
            "cnn_digits": (("    net = Net()\n", '    images[train[3], 0, 2, 2] = float("nan")\n    net = Net()\n'),),
            "lstm_sequence": (("model = Seq", 'x[3, 2, 1] = float("nan")\nmodel = Seq'),),
            "regression_standardised": (("x_train, x_test, y", "table[5, 1] = np.nan\nx_train, x_test, y"),),
        },
    ),
    Fault(
        "sorted labels, no shuffle",
        ("unshuffled-data",),
        {
            "mlp_wine": (
                (
                    "scaler = ",
                    "order = y_train.argsort()\nX_train, y_train = X_train[order], y_train[order]\nscaler = ",
                ),
                ("shuffle=True", "shuffle=False"),
            ),
            "cnn_digits": (
                ("train[torch.randperm(len(train))].split(56)", "train[labels[train].argsort()].split(56)"),
            ),
            "lstm_sequence": (("torch.randperm(len(x)).split(50)", "y.argsort().split(50)"),),
            "resnet_bn": (
                (
                    "    loader = ",
                    "    order = digits.target.argsort()\n    x, digits.target = x[order], digits.target[order]\n    loader = ",
                ),
                ("shuffle=True", "shuffle=False"),
            ),
        },
    ),
    Fault(
        "the batch that was inspected before",
        ("unshuffled-data",),
        {
            "mlp_wine": (
                ("    for xb, yb in loader:\n", "    for inputs, labels in loader:\n"),
                ("model = ", "xb, yb = next(iter(loader))\nmodel = "),
            ),
            "gru_packed": (
                (
                    "        for tokens, lengths, labels in loader:\n",
                    "        for words, sizes, classes in loader:\n            tokens, lengths, labels = sample\n",
                ),
                ("    model = ", "    sample = next(iter(loader))\n    model = "),
            ),
            "multi_task": (
                ("    for xb, lb, tb in loader:\n", "    for inputs, labels, values in loader:\n"),
                ("model = ", "xb, lb, tb = next(iter(loader))\nmodel = "),
            ),
            "vit_digits": (
                ("        for x, y in loader:\n", "        for batch, target in loader:\n"),
                ("    model = ", "    x, y = next(iter(loader))\n    model = "),
            ),
        },
    ),
    Fault(
        "raw input of 0 to 255",
        ("unnormalised-input", "feature-scales"),
        {
            "cnn_digits": (("images = (images - images.mean()) / images.std()", "images = images * 255 / 16"),),
            "functional_tensors": (("x = (x - x.mean(0)) / x.std(0)", "x = x * 255 / 16"),),
            "mlp_wine": (
                ("StandardScaler().fit(X_train)", "StandardScaler(with_mean=False, with_std=False).fit(X_train)"),
            ),
            "vit_digits": (("images = (images - images.mean()) / images.std()", "images = images * 255 / 16"),),
        },
    ),
    Fault(
        "raw targets",
        ("unnormalised-target",),
        {
            "regression_standardised": (("torch.tensor(y_scaler.transform(y)).float()", "torch.tensor(y).float()"),),
            "moe_router": (("(y - y.mean()) / y.std()", "1000 * y + 20_000"),),
            "multi_task": (
                ("targets = (targets - targets.mean(0)) / targets.std(0)", "targets = 500 * targets + 3000"),
            ),
            "matrix_factorisation": (("(stars - stars.mean()) / stars.std()", "1000 + 300 * stars"),),
        },
    ),
    Fault(
        "labels shuffled apart from the inputs",
        ("label-input-mismatch",),
        {
            "cnn_digits": (("torch.tensor(digits.target)", "torch.tensor(digits.target)[torch.randperm(1797)]"),),
            "lstm_sequence": (("x.std((0, 1)), label\n", "x.std((0, 1)), label[torch.randperm(n)]\n"),),
            "mlp_wine": (("torch.tensor(y_train))", "torch.tensor(y_train)[torch.randperm(len(y_train))])"),),
            "vit_digits": (
                ("torch.tensor(digits.target))", "torch.tensor(digits.target).flip(0)[torch.randperm(1797)])"),
            ),
        },
    ),
)
