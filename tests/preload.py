"""What the fork server loads before it forks: everything that a script or a report needs, and one compute thread."""

import matplotlib.figure  # noqa: F401
import torch

import netdoctor.render.html
import netdoctor.render.terminal
import netdoctor.session  # noqa: F401

torch.set_num_threads(1)
