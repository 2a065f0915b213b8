"""Update rules: pure functions on fp32 tensors that know no storage format. See :mod:`halfulp.rules.base`."""
