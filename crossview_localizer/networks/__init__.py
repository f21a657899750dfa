"""The networks, their pretrained trunks, checkpoints and ONNX files."""
