"""All that a training needs to provide, in 20 lines, for tests of the loop and of its log."""

import torch
from torch import nn

from vqvae2.training.trainer import Share, Trainer


class Line(Trainer):
    """y = 3 x - 1 from 40 points: all that a subclass has to provide."""

    kind = "line"

    def start(self):
        self.x = torch.linspace(-1, 1, 40)[:, None]

    def build(self):
        return nn.Linear(1, 1)

    def count(self, split):
        return {"train": 40, "validate": 10}[split]

    def losses(self, model, share: Share):
        x = self.x[share.items] if model.training else self.x[share.items * 4]
        return {"loss": (model(x) - (3 * x - 1)).square()[:, 0]}

    def optimizer(self, parameters):
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate)
