"""Logs of running processes: bounded, read from their end, followed through a rotation."""

import itertools
import subprocess
import sys
import time

from brinery_platform.runtimes import logfiles

WRITES = "import sys\nfor number in range(int(sys.argv[1])): print('line', number, flush=True)"


def read(log, tail, **options):
    return list(logfiles.read(log, tail=tail, follow=False, running=lambda: False, **options))


def test_the_last_lines_are_read_across_blocks(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("".join(f"{number} {'x' * 1000}\n" for number in range(500)))
    assert [line.split()[0] for line in read(log, 300)] == [str(number) for number in range(200, 500)]
    assert read(log, 0) == []
    assert len(read(log, 1000)) == 500


def test_a_last_line_without_an_end_is_read_too(tmp_path):
    (tmp_path / "one.log").write_bytes(b"first\nsecond \xff")
    assert read(tmp_path / "one.log", 2) == ["first", "second \ufffd"]


def test_a_log_that_a_process_writes_stays_bounded_and_loses_no_line_in_its_tail(tmp_path):
    log = tmp_path / "one.log"
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", WRITES, "1000"], stdout=output, check=True)
        assert logfiles.is_large(log, max_bytes=5000)
        logfiles.rotate(log, max_bytes=5000)
        assert log.stat().st_size == 0
        assert (tmp_path / "one.log.1").stat().st_size == 5000
        subprocess.run([sys.executable, "-c", WRITES, "3"], stdout=output, check=True)
    assert log.read_text() == "line 0\nline 1\nline 2\n"  # written from the start, although never reopened
    assert read(log, 5) == ["line 998", "line 999", "line 0", "line 1", "line 2"]
    assert (tmp_path / "one.log.1").stat().st_mode & 0o077 == 0


def test_since_a_mark_only_what_was_written_after_it_is_read_through_a_rotation_too(tmp_path):
    log = tmp_path / "one.log"

    def write(*lines):
        with log.open("a") as output:
            output.writelines(f"{line}\n" for line in lines)

    at_first = logfiles.mark(log)
    write("one", "two")
    after_two = logfiles.mark(log)
    assert read(log, 5, since=at_first) == ["one", "two"]
    assert read(log, 5, since=after_two) == []
    write("three", "four")
    assert read(log, 5, since=after_two) == ["three", "four"]
    assert read(log, 1, since=after_two) == ["four"]
    time.sleep(0.02)  # the clock of the file system's times is coarser
    logfiles.rotate(log, max_bytes=5)
    assert read(log, 5, since=after_two) == []
    write("five", "six", "seven")  # longer than it was at the mark
    assert read(log, 5, since=after_two) == ["five", "six", "seven"]


def test_a_small_log_is_left_alone(tmp_path):
    (tmp_path / "one.log").write_text("line\n")
    logfiles.rotate(tmp_path / "one.log", max_bytes=5000)
    assert (tmp_path / "one.log").read_text() == "line\n"
    logfiles.rotate(tmp_path / "none.log", max_bytes=5000)


def test_following_goes_on_after_a_rotation(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("a long first line\n")
    steps = itertools.count()

    def running():
        match next(steps):
            case 0:
                with log.open("a") as output:
                    output.write("second\n")
            case 1:
                logfiles.rotate(log, max_bytes=5)
                log.write_text("third\nunfinished")
            case _:
                return False
        return True

    lines = logfiles.read(log, tail=1, follow=True, running=running)
    assert list(lines) == ["a long first line", "second", "third", "unfinished"]


def test_old_logs_are_forgotten_but_for_the_newest_and_those_in_use(tmp_path):
    for number in range(10):
        (tmp_path / f"wrk_{number}.log").write_text("x")
        (tmp_path / f"wrk_{number}.log.1").write_text("x")
    logfiles.forget_old(tmp_path, running={"wrk_0", "wrk_1"}, keep=3)
    left = {path.name for path in tmp_path.glob("*.log")}
    assert len(left) == 5
    assert {"wrk_0.log", "wrk_1.log"} < left
    assert {path.name for path in tmp_path.glob("*.log.1")} == {f"{name}.1" for name in left}
