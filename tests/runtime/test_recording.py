"""A recording used from Python, as a server does: no command, no argparse, nothing printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from arlon_rt.cli import main
from cli_runs import run

PROMPT = "a red circle moves right"


def test_plain_python_records_and_resumes_to_the_bytes_of_the_command(folder: Path, tmp_path: Path) -> None:
    code = """
        import dataclasses, json, sys
        sys.modules["argparse"] = None   # importing it raises ModuleNotFoundError
        from arlon_rt.bundle import Bundle
        from arlon_rt.errors import Cancelled
        from arlon_rt.events import ChunkReady
        from arlon_rt.options import GenerateOptions
        from arlon_rt.pipeline import Pipeline
        from arlon_rt.recording import Recording
        from arlon_rt.timeline import Timeline

        def stop(event):
            if isinstance(event, ChunkReady) and event.index >= 85:
                raise Cancelled

        bundle, output = Bundle.open(sys.argv[1]), sys.argv[2]
        options = GenerateOptions(num_frames=119, seed=3)
        with Pipeline.open(bundle, threads=1) as pipeline:
            first = Recording(output, Timeline.of(sys.argv[3]), options, bundle)
            try:
                first.record(pipeline, stop)
            except Cancelled:
                assert first.resumable
            second = Recording.resume(output, bundle)
            second.record(pipeline)
        loaded = [name for name in sys.modules if name.startswith("arlon_rt.cli")]
        summaries = [dataclasses.asdict(s) for s in (first.summary(stopped=True), second.summary(stopped=False))]
        sys.stderr.write(json.dumps([loaded, *summaries]))
    """
    output, command = tmp_path / "out.mp4", tmp_path / "command.mp4"
    done = run(code, str(folder), str(output), PROMPT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    loaded, stopped, resumed = json.loads(done.stderr)
    assert loaded == []
    assert (stopped["file"], stopped["num_frames"], stopped["first_chunk_seconds"]) == (str(output), 85, None)
    assert (resumed["num_frames"], resumed["seconds"]) == (119, 119 / 24)
    assert resumed["written_seconds"] == (119 - 68) / 24   # it goes on where the first segment ended
    assert resumed["origin"] == stopped["origin"]
    request = ["generate", PROMPT, "-o", str(command), "--bundle", str(folder), "--num-frames", "119", "--seed", "3"]
    assert main([*request, "--threads", "1", "--quiet"]) == 0
    assert output.read_bytes() == command.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["command.mp4", "out.mp4"]
