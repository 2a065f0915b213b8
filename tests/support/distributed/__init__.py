"""Modules that run under torchrun, as ``python -m torch.distributed.run ... -m support.distributed.NAME``."""
