"""Post-training quantisation: calibration, repair, and insertion of quantize and dequantize."""
