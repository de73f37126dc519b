"""Long generated videos: scenes with questions, real H.264 files, and the reading of frames from any file."""
