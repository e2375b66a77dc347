"""Bytes and seconds as people read them."""

import math


def readable(size: float) -> str:
  """Bytes for people.

  >>> readable(3 * 2**29)
  '1.5 GiB'
  """
  units = ["B", "KiB", "MiB", "GiB", "TiB"]
  power = min(int(math.log2(max(size, 1))) // 10, len(units) - 1)
  return f"{size / 1024**power:.3g} {units[power]}"


def clock(seconds: float | None) -> str:
  """Seconds for people.

  >>> clock(3725), clock(None)
  ('1:02:05', '-:--')
  """
  if seconds is None or not math.isfinite(seconds):
    return "-:--"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
