"""Requests of several clients at once to `vitdense serve`: successes, equal results, and latency.

    python benchmarks/serving.py work_dirs/shapes/model [--requests 200] [--clients 16]

Every client sends the same drawn scene of 256 x 256 as PNG and waits for the JSON before it sends the next. The server
has one torch thread. Exit code 1 when a request is lost or a response differs from that of a lone request.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from vitdense.data.shapes import ShapesScenes

STARTED = 300  # seconds for the server to load the model


def scene() -> bytes:
    """Return a drawn scene as PNG."""
    stream = io.BytesIO()
    Image.fromarray(ShapesScenes(1, size=256, split='val')[0].img.permute(1, 2, 0).numpy()).save(stream, format='PNG')
    return stream.getvalue()


def send(port: int, image: bytes) -> tuple[float, dict]:
    """Send a request and return its seconds and its predictions, without the times of the stages."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.request('POST', '/api/image', image)
    response = connection.getresponse()
    record = json.loads(response.read())
    assert response.status == 200, record
    return time.perf_counter() - start, {key: value for key, value in record.items() if 'seconds' not in key}


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Wait until the server takes connections."""
    end = time.monotonic() + STARTED
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError('the server did not start')


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--requests', type=int, default=200)
    parser.add_argument('--clients', type=int, default=16)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'vitdense.tools.serve', args.model, '--port', str(port), '--amp', 'off']
    server = subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    try:
        wait_for(port, server)
        image = scene()
        _, alone = send(port, image)
        start = time.perf_counter()
        with ThreadPoolExecutor(args.clients) as pool:
            outputs = list(pool.map(lambda _: send(port, image), range(args.requests)))
        rate = args.requests / (time.perf_counter() - start)
    finally:
        server.terminate()
        server.wait()
    equal = sum(record == alone for _, record in outputs)
    hundredths = statistics.quantiles([seconds for seconds, _ in outputs], n=100)
    print(f'{len(outputs)} of {args.requests} succeeded, {equal} equal to that of a lone request')
    print(f'p50 {hundredths[49]:.2f} s, p95 {hundredths[94]:.2f} s, {rate:.0f} requests a second')
    return 0 if equal == args.requests else 1


if __name__ == '__main__':
    sys.exit(main())
