"""From quantised values to integer arithmetic: what `lower_quantized` is made of."""
