"""ONNX files as graphs: reading and changing them, and facts about them."""
