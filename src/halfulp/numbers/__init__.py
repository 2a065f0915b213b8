"""The meaning of codes: formats, rounding, scales, quantizers and random bits."""
