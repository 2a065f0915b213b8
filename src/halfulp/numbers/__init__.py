"""What a code means: formats, rounding, scales, quantizers and random bits."""
