"""Where the training loop leaves the ids of coming steps, for readers that wait for them.

Readers are threads of this process (`Board`) or of others (`Server` here, `Client` there). Which
ids a step has is known to one process only; the others ask it and wait for the answer, so nothing
is polled, left on disk or sent before somebody needs it.
"""

import collections
import secrets
import socket
import sys
import threading
import weakref
from multiprocessing import AuthenticationError, connection, current_process

import numpy as np


class Board:
  """The ids of the steps that are published and not yet passed.

  >>> board = Board(3)
  >>> board.publish(3, np.array([[7, 1], [4, 4]], np.int32))
  >>> board.end, board.wait(4).tolist()
  (5, [4, 4])
  """

  def __init__(self, start: int):
    self._changed = threading.Condition()
    self._blocks: collections.deque[tuple[int, np.ndarray]] = collections.deque()
    self._end = start
    self._closed = False
    _boards.add(self)

  @property
  def end(self) -> int:
    """The first step that is not published."""
    return self._end

  def publish(self, first: int, ids: np.ndarray) -> None:
    """Adds int32 ``ids[steps, b]`` of the steps from ``first`` on; the board keeps the array."""
    with self._changed:
      self._blocks.append((first, ids))
      self._end = first + len(ids)
      self._changed.notify_all()

  def wait(self, step: int) -> np.ndarray | None:
    """The ids int32[b] of ``step`` as soon as they are published, None once the board is closed."""
    with self._changed:
      self._changed.wait_for(lambda: self._closed or step < self._end)
      if self._closed:
        return None
      first, ids = next(block for block in reversed(self._blocks) if block[0] <= step)
      return ids[step - first].copy()

  def passed(self, step: int) -> None:
    """Lets go of the blocks whose last step is ``step`` or before."""
    with self._changed:
      while self._blocks and self._blocks[0][0] + len(self._blocks[0][1]) <= step + 1:
        self._blocks.popleft()

  def close(self) -> None:
    """Sends everybody who waits away."""
    with self._changed:
      self._closed = True
      self._blocks.clear()
      self._changed.notify_all()


# The interpreter joins the threads of all executors before it ends, and before anything that
# `atexit` knows: a board that nobody closed would hold it up for ever.
_boards: weakref.WeakSet[Board] = weakref.WeakSet()
threading._register_atexit(lambda: [board.close() for board in list(_boards)])  # pyrefly: ignore


class Server:
  """Answers the `Client` copies of other processes from ``board``, each in a thread."""

  def __init__(self, board: Board):
    self._board = board
    # On Linux a name in no folder, which cannot be too long for a socket or be left behind.
    name = f"\0jsel-{secrets.token_hex(16)}" if sys.platform == "linux" else None
    self._listener = connection.Listener(name, backlog=128, authkey=current_process().authkey)
    self._closed = False
    self._thread = threading.Thread(target=self._accept, name="jsel-board", daemon=True)
    self._thread.start()

  def client(self) -> "Client":
    """What the processes that this one starts are given."""
    return Client(self._listener.address)

  def close(self) -> None:
    """Hears no new clients; those that are there keep their thread until they end."""
    self._closed = True
    with socket.socket(socket.AF_UNIX) as caller:  # only to be heard by the thread that listens
      caller.connect(self._listener.address)
    self._thread.join()
    self._listener.close()

  def _accept(self) -> None:
    while not self._closed:
      try:
        client = self._listener.accept()
      except (AuthenticationError, OSError, EOFError):
        continue  # a stranger, or one that ended in the middle of it
      threading.Thread(
        target=self._answer, args=(client,), name="jsel-board-client", daemon=True
      ).start()

  def _answer(self, client: connection.Connection) -> None:
    with client:
      try:
        while True:
          ids = self._board.wait(int.from_bytes(client.recv_bytes(), "little"))
          client.send_bytes(b"" if ids is None else ids.tobytes())
      except (OSError, EOFError):
        return  # the process has ended


class Client:
  """`Board.wait` for another process, which must be a child of the server's."""

  def __init__(self, address: str):
    self._address = address
    self._local = threading.local()  # a connection a thread: all of them wait side by side

  def wait(self, step: int) -> np.ndarray | None:
    """As `Board.wait`; None also where the server has ended."""
    try:
      if not hasattr(self._local, "connection"):
        self._local.connection = connection.Client(self._address, authkey=current_process().authkey)
      self._local.connection.send_bytes(step.to_bytes(8, "little"))
      answer = self._local.connection.recv_bytes()
    except (OSError, EOFError):
      return None
    return np.frombuffer(answer, np.int32) if answer else None

  def __reduce__(self):
    return Client, (self._address,)
