"""The networks and their trunks, weights files, untrained controls and ONNX files."""
