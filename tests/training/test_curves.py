"""The picture of a run, of whatever the run left behind."""

import json

import matplotlib.image
import numpy as np
import pytest

from jsel.training import curves, outputs
from jsel.training.metrics import MetricsWriter

SUMMARY = {
  "test_accuracy": 0.914, "examples_seen": 12_800, "steps": 100, "wall_seconds": 94.2,
  "fit_seconds": 2.0, "selection_overhead_pct": 0.41, "selector": "rep_div", "ratio": 0.5,
  "seed": 0, "data": "digits", "curves_of": "validation",
}  # fmt: skip


def write_run(workdir, *, train=True, evaluate=True, loss=lambda t: 2 - t, seconds=94.0):
  with MetricsWriter(workdir) as writer:
    for step in range(1, 101):
      t = step / 100
      values = {"examples_seen": 128 * step, "wall_seconds": seconds * t}
      if train:
        values |= {"train/loss": loss(t), "train/accuracy": 0.5 + 0.4 * t}
      if evaluate and step % 20 == 0:
        values |= {"eval/loss": 2.1 - t, "eval/accuracy": 0.48 + 0.4 * t}
      writer.write(step, values)


def write_exposure(workdir, times):
  zeros = np.zeros_like(times)
  outputs.write_exposure(
    workdir / "exposure.parquet",
    {
      "index": np.arange(times.size),
      "times_selected": times,
      "first_step": zeros,
      "last_step": zeros,
      "last_loss": zeros,
    },
  )


def drawn(workdir):
  """The pixels of the picture, and the share of them that are not white."""
  image = matplotlib.image.imread(str(curves.plot_curves(workdir)))
  return image, float((image[..., :3].min(-1) < 0.98).mean())


@pytest.fixture
def texts(monkeypatch):
  """What the picture says, as its figure has it when it is saved."""
  found = []
  save = curves.Figure.savefig

  def spy(figure, *args, **kwargs):
    found.extend(text.get_text() for text in figure.findobj(curves.matplotlib.text.Text))
    save(figure, *args, **kwargs)

  monkeypatch.setattr(curves.Figure, "savefig", spy)
  return found


def test_a_run_is_drawn(tmp_path, rng, texts):
  write_run(tmp_path)
  write_exposure(tmp_path, np.r_[np.zeros(200, int), rng.integers(1, 9, 1597)])
  outputs.write_json(tmp_path / "summary.json", SUMMARY)
  outputs.write_json(tmp_path / "config.json", {"model": {"name": "cnn"}})
  image, ink = drawn(tmp_path)
  assert image.shape[:2] == (1035, 1980)
  assert ink > 0.05  # bars and lines; the frames and words alone are less than 0.04
  assert (tmp_path / "curves.png").stat().st_size < 500_000
  assert "digits · cnn · rep_div" in texts
  facts = next(text for text in texts if text.startswith("ratio"))
  assert "ratio 0.5 " in facts
  assert "test accuracy 91.40 %" in facts
  assert "selection 0.41 % of the time" in facts
  assert "validation" in texts
  assert "200 of 1,797 never (11.1 %), mean" in " ".join(texts)
  assert "not measured" not in texts


def test_what_is_missing_is_left_out(tmp_path, texts):
  drawn(tmp_path)
  assert texts.count("not measured") == 5


def test_a_run_without_evaluation_is_drawn(tmp_path, texts):
  write_run(tmp_path, evaluate=False)
  drawn(tmp_path)
  assert texts.count("not measured") == 1  # the exposure
  assert "test" not in texts


def test_a_run_with_evaluation_alone_is_drawn(tmp_path, texts):
  write_run(tmp_path, train=False)
  drawn(tmp_path)
  assert texts.count("not measured") == 1
  assert "test" in texts


@pytest.mark.parametrize(
  "loss", [lambda t: np.nan, lambda t: np.nan if t > 0.5 else 1.0, lambda t: 0.0, lambda t: -t]
)
def test_any_loss_is_drawn(tmp_path, loss):
  write_run(tmp_path, loss=loss)
  assert drawn(tmp_path)[1] > 0.01


def test_a_long_run_counts_minutes(tmp_path, texts):
  write_run(tmp_path, seconds=4000.0)
  drawn(tmp_path)
  assert "wall time, minutes" in texts


@pytest.mark.parametrize("times", [np.zeros(7, int), np.zeros(0, int), np.full(9, 10_000)])
def test_any_exposure_is_drawn(tmp_path, times):
  write_exposure(tmp_path, times)
  assert drawn(tmp_path)[1] > 0.005


def test_a_null_in_the_summary_is_left_out(tmp_path, texts):
  outputs.write_json(tmp_path / "summary.json", SUMMARY | {"test_accuracy": np.nan, "ratio": None})
  drawn(tmp_path)
  assert not any("test accuracy" in text or "ratio" in text for text in texts)


def test_smoothing_keeps_a_constant_and_the_length(rng):
  for size in (1, 2, 29, 30, 1000):
    # A difference of float64 sums of up to 1000 terms.
    np.testing.assert_allclose(curves._smooth(np.full(size, 0.3)), 0.3, rtol=1e-12)
  noisy = rng.standard_normal(1000)
  assert curves._smooth(noisy).std() < 0.3 * noisy.std()


def test_a_damaged_line_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(json.dumps([1]) + "\n")
  with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is no line"):
    curves.plot_curves(tmp_path)
