"""Update rules: pure functions on fp32 tensors, independent of storage formats. See :mod:`halfulp.rules.base`."""
