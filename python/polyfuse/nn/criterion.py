"""Criteria: torch's own, subclassed so that a deferred prediction stays deferred."""

import torch


class MSELoss(torch.nn.MSELoss):
    __doc__ = torch.nn.MSELoss.__doc__
