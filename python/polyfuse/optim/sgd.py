import torch


class SGD(torch.optim.SGD):
    __doc__ = torch.optim.SGD.__doc__
