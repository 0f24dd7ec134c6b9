"""Notes as sound."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kamado.errors import InvalidRequest
from kamado.media.synth import MAX_SOUNDING_S, PEAK, end_s, sound_of
from kamado.outputs import Note, Score
from media_outputs import melody

RATE = 32_000


def played(*notes: Note, rate: int = RATE, longest_s: float = 30.0) -> NDArray[np.float32]:
    sound = sound_of(Score(notes=notes), rate, longest_s=longest_s)
    assert sound.samples.dtype == np.float32 and sound.sample_rate == rate and len(sound.samples) == 1
    return np.asarray(sound.samples[0])


def loudest_hertz(samples: NDArray[np.float32], rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize(("pitch", "hertz"), [(69, 440.0), (57, 220.0), (81, 880.0), (60, 261.63)])
@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100])
def test_a_note_has_its_pitch_and_harmonics(pitch: int, hertz: float, rate: int) -> None:
    samples = played(Note(start_s=0.25, duration_s=1.0, pitch=pitch), rate=rate)
    sounding = samples[round(0.25 * rate) :]
    assert len(sounding) == rate and abs(loudest_hertz(sounding, rate) - hertz) <= 1
    spectrum = np.abs(np.fft.rfft(sounding * np.hanning(rate)))
    peaks = [spectrum[round(k * hertz) - 3 : round(k * hertz) + 4].max() / spectrum.max() for k in (2, 3, 4)]
    np.testing.assert_allclose(peaks, [1 / k**1.5 for k in (2, 3, 4)], rtol=0.1)


def test_length_silence_and_loudness() -> None:
    first, second = Note(start_s=0.5, duration_s=0.5, pitch=60), Note(start_s=2.0, duration_s=1.25, pitch=72)
    samples = played(first, second)
    assert len(samples) == round(3.25 * RATE) and np.abs(samples).max() == pytest.approx(PEAK)
    for begin, end in ((0.0, 0.5), (1.0, 2.0)):
        assert not samples[round(begin * RATE) : round(end * RATE)].any()
    for begin, end in ((0.5, 1.0), (2.0, 3.25)):
        assert np.abs(samples[round(begin * RATE) : round(end * RATE)]).max() > 0.4
    for edge in (0.5, 1.0, 2.0, 3.25):  # it begins and ends without a click
        assert np.abs(samples[round(edge * RATE) - 5 : round(edge * RATE) + 5]).max() < 0.05
    soft = Note(start_s=2.0, duration_s=1.0, pitch=60, velocity=20)
    samples = played(Note(start_s=0.0, duration_s=1.0, pitch=60, velocity=80), soft)
    loud, quiet = np.abs(samples[:RATE]).max(), np.abs(samples[2 * RATE :]).max()
    assert quiet / loud == pytest.approx(20 / 80, rel=0.05)


def test_drums_and_chords() -> None:
    drum = Note(start_s=0.0, duration_s=0.5, pitch=36, is_drum=True)
    samples = played(drum)
    assert np.abs(samples[: RATE // 20]).max() == pytest.approx(PEAK) and np.abs(samples[RATE // 4 :]).max() < 0.01
    low, high = (Note(start_s=0.0, duration_s=1.0, pitch=pitch) for pitch in (60, 67))
    both = played(low, high)
    apart = np.stack([played(low), played(high)])
    factor = both @ apart.sum(0) / (apart.sum(0) @ apart.sum(0))
    np.testing.assert_allclose(both, factor * apart.sum(0), atol=0.02)
    assert np.array_equal(played(low, high), both) and np.array_equal(played(high, low), both)
    with pytest.raises(InvalidRequest, match="drums have no melody"):
        sound_of(Score(notes=(drum,)), RATE, longest_s=1.0, drums=False)
    assert np.array_equal(sound_of(Score(notes=(drum, low)), RATE, longest_s=9.0, drums=False).samples[0], played(low))


def test_a_drum_roll_is_quickly_made() -> None:
    drums = tuple(Note(start_s=each / 10_000, duration_s=0.0, pitch=36, is_drum=True) for each in range(20_000))
    begun = time.perf_counter()
    assert np.abs(played(*drums)).max() == pytest.approx(PEAK)
    assert time.perf_counter() - begun < 2, "the burst is made once, not for each of them"


def test_it_is_cut() -> None:
    long, late = Note(start_s=0.0, duration_s=9.0, pitch=60), Note(start_s=5.0, duration_s=1.0, pitch=60)
    assert len(played(long, late, longest_s=2.0)) == 2 * RATE
    with pytest.raises(InvalidRequest, match="none that can be heard"):
        played(late, longest_s=2.0)
    crowd = (Note(start_s=0.0, duration_s=30.0, pitch=60),) * (MAX_SOUNDING_S // 30 + 1)
    with pytest.raises(InvalidRequest, match="sounds for more than 20000 s"):
        played(*crowd)


@settings(max_examples=50)
@given(
    notes=st.lists(
        st.builds(
            Note,
            start_s=st.floats(0, 2),
            duration_s=st.floats(0, 2),
            pitch=st.integers(0, 127),
            velocity=st.integers(1, 127),
            is_drum=st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    rate=st.integers(1000, 8000),
)
def test_any_notes_are_sound_without_clipping(notes: list[Note], rate: int) -> None:
    samples = played(*notes, rate=rate)
    assert len(samples) == max(round(end_s(Score(notes=tuple(notes))) * rate), 1)
    assert np.isfinite(samples).all() and np.abs(samples).max() <= PEAK + 1e-6


def test_the_same_every_time() -> None:
    one, other = (sound_of(melody(), 8000, longest_s=9.0).samples for _ in range(2))
    assert np.array_equal(one, other)
