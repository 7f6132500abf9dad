"""Faults of the loss and of what it is given."""

from __future__ import annotations

from tests.mutations.injection import Fault

_LOG_OF_RELU = "F.nll_loss(torch.log((p := F.relu({0})) / p.sum(dim=1, keepdim=True)), {1})"

FAULTS = (
    Fault(
        "softmax before cross_entropy",
        ("double-softmax",),
        {
            "mlp_wine": (("nn.Linear(64, 3))", "nn.Linear(64, 3), nn.Softmax(dim=1))"),),
            "cnn_digits": (("return self.fc2(x)", "return F.softmax(self.fc2(x), dim=1)"),),
            "functional_tensors": (("return h @ w3 + b3", "return torch.softmax(h @ w3 + b3, dim=1)"),),
            "lstm_sequence": (("return self.head(out[:, -1])", "return self.head(out[:, -1]).softmax(dim=-1)"),),
            "gpt_small": (("self.lm_head(self.ln_f(x))", "self.lm_head(self.ln_f(x)).softmax(-1)"),),
        },
    ),
    Fault(
        "sigmoid before BCE with logits",
        ("probabilities-into-logit-loss", "double-softmax"),
        {
            "dataloader_dropout": (("return self.fc3(x).squeeze(1)", "return torch.sigmoid(self.fc3(x).squeeze(1))"),),
            "unet_segmentation": (("return self.out(y)", "return self.out(y).sigmoid()"),),
            "gan_ring": (
                (
                    "discriminator = mlp([2, 64, 64, 1])",
                    "discriminator = nn.Sequential(mlp([2, 64, 64, 1]), nn.Sigmoid())",
                ),
            ),
        },
    ),
    Fault(
        "nll_loss of raw scores",
        ("logits-into-probability-loss",),
        {
            "mlp_wine": (("nn.CrossEntropyLoss()", "nn.NLLLoss()"),),
            "cnn_digits": (("F.cross_entropy", "F.nll_loss"),),
            "graph_conv": (("F.cross_entropy", "F.nll_loss"),),
            "lstm_sequence": (("nn.functional.cross_entropy", "nn.functional.nll_loss"),),
        },
    ),
    Fault(
        "(N, 1) against (N)",
        ("loss-shape-broadcast",),
        {
            "regression_standardised": (("criterion(model(xb), yb)", "criterion(model(xb), yb.squeeze(1))"),),
            "lbfgs_closure": (("((y - y.mean()) / y.std()).unsqueeze(1)", "(y - y.mean()) / y.std()"),),
            "moe_router": (("self.head(self.norm(h + mixed)).squeeze(-1)", "self.head(self.norm(h + mixed))"),),
            "matrix_factorisation": (
                ("(u * i).sum(dim=1)", "(u * i).sum(dim=1, keepdim=True)"),
                ("dim=1)).squeeze(1)", "dim=1))"),
            ),
        },
    ),
    Fault(
        "a class number regressed by several outputs",
        ("wrong-loss",),
        {
            "mlp_wine": (
                ("nn.CrossEntropyLoss()", "nn.MSELoss()"),
                ("model(xb), yb)", "model(xb), yb.float().unsqueeze(1))"),
            ),
            "cnn_digits": (
                (
                    "F.cross_entropy(net(images[rows]), labels[rows])",
                    "F.mse_loss(net(images[rows]), labels[rows, None].float())",
                ),
            ),
            "lstm_sequence": (
                ("functional.cross_entropy(logits, y[idx])", "functional.l1_loss(logits, y[idx].view(-1, 1).float())"),
            ),
        },
    ),
    Fault(
        "square root of 0 in the loss",
        ("non-finite-gradient",),
        {
            "metric_learning": (
                ("similarity = z @ z.T", "similarity = 1 - torch.sqrt(((z[:, None] - z[None]) ** 2).sum(dim=-1))"),
            ),
            "cnn_digits": (
                (
                    "labels[rows])\n",
                    "labels[rows]) + 0.01 * sum(m.bias.square().sum().sqrt() for m in (net.conv1, net.fc1))\n",
                ),
            ),
            "flow_moons": (
                (
                    "nll = -flow.log_prob(batch).mean()",
                    "nll = -flow.log_prob(batch).mean() + 0.01 * torch.sqrt("
                    "sum((c.net[-1].bias ** 2).sum() for c in flow.couplings))",
                ),
            ),
        },
    ),
    Fault(
        "log of 0 in the loss",
        ("non-finite-activation", "non-finite-gradient", "softmax-then-log"),
        {
            "cnn_digits": (
                (
                    "F.cross_entropy(net(images[rows]), labels[rows])",
                    _LOG_OF_RELU.format("net(images[rows])", "labels[rows]"),
                ),
            ),
            "graph_conv": (
                (
                    "F.cross_entropy(model(x, adjacency)[mask], y[mask])",
                    _LOG_OF_RELU.format("model(x, adjacency)[mask]", "y[mask]"),
                ),
            ),
            "multi_task": (("loss = class_loss + value_loss", "loss = class_loss - values.clamp(min=0).log().mean()"),),
        },
    ),
    Fault(
        "softmax over the batch",
        ("wrong-dim-softmax",),
        {
            "mlp_wine": (
                ("nn.Linear(64, 3))", "nn.Linear(64, 3), nn.LogSoftmax(dim=0))"),
                ("nn.CrossEntropyLoss()", "nn.NLLLoss()"),
            ),
            "cnn_digits": (
                ("return self.fc2(x)", "return F.log_softmax(self.fc2(x), dim=0)"),
                ("F.cross_entropy", "F.nll_loss"),
            ),
            "lstm_sequence": (
                ("cross_entropy(logits, y[idx])", "nll_loss(logits.softmax(0).clamp_min(1e-9).log(), y[idx])"),
            ),
        },
    ),
    Fault(
        "activation on the output",
        ("output-activation", "dead-relu"),
        {
            "regression_standardised": (("nn.Linear(64, 1))", "nn.Linear(64, 1), nn.ReLU())"),),
            "autoencoder_conv": (
                (
                    "nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),",
                    "nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),",
                ),
            ),
            "diffusion_spiral": (
                (
                    "return self.out(torch.nn.functional.silu(h))",
                    "return torch.sigmoid(self.out(torch.nn.functional.silu(h)))",
                ),
            ),
        },
    ),
)
