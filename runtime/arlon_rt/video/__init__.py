"""Pixels in and out: files, folders and pipes of frames."""

from arlon_rt.video.encoding import DEFAULT_QUALITY, EFFORTS, Quality, even, yuv
from arlon_rt.video.footage import read_clip, read_image
from arlon_rt.video.sinks import PIPE, Sink, check_sink, is_folder, open_sink
from arlon_rt.video.writer import VideoWriter, unfinished_path
