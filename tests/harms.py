"""What is done to files of a checkpoint."""

import os
import pathlib


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


HARMS = {"truncated": truncate, "flipped": flip, "deleted": pathlib.Path.unlink}
