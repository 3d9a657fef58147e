"""The page in a real browser: an image and a video are dropped, thresholds move, nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip('fastapi')
uvicorn = pytest.importorskip('uvicorn')
playwright = pytest.importorskip('playwright.sync_api')
app = pytest.importorskip('vitdense.serving.app')
examples = pytest.importorskip('tests.serving.test_app')

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason='no Chromium')]


@pytest.fixture(scope='module')
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(
            app.create_app(examples.Painter(), name='a model'), host='127.0.0.1', port=port, log_level='error'
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f'http://127.0.0.1:{port}'
    server.should_exit = True
    thread.join()


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={'width': 1000, 'height': 700}, accept_downloads=True)
    page.requested, page.faults = [], []
    page.on('request', lambda request: page.requested.append(request.url))
    page.on('pageerror', lambda error: page.faults.append(str(error)))
    page.goto(address)
    yield page
    outside = [url for url in page.requested if not url.startswith((address, 'blob:', 'data:'))]
    assert outside == [] and page.faults == []
    page.close()


def painted(page: Any) -> int:
    """Return the number of pixels of the overlay that are not transparent."""
    return page.evaluate("""() => {
      const over = document.getElementById('over');
      const data = over.getContext('2d').getImageData(0, 0, over.width, over.height).data;
      return data.filter((value, index) => index % 4 === 3 && value > 0).length;
    }""")


def test_an_image_is_shown_with_legend_and_live_thresholds(page: Any, tmp_path: Path) -> None:
    (tmp_path / 'a.png').write_bytes(examples.png(size=(320, 240)))
    page.set_input_files('#file', tmp_path / 'a.png')
    page.wait_for_selector('#legend .name')
    assert page.locator('#legend .name').all_text_contents() == ['bus', 'sky', 'night', 'day']
    requests = len(page.requested)
    page.locator('#opacity').fill('0')  # regions vanish, the box stays
    with_box = painted(page)
    slider = page.get_by_label('score of bus')
    assert slider.input_value() == '0.35'  # the threshold of the model
    slider.fill('0.9')
    assert page.locator('#legend .number').first.text_content() == '0' and painted(page) == 0 < with_box
    slider.fill('0.2')
    assert painted(page) == with_box
    page.locator('#opacity').fill('0.5')
    assert painted(page) == 640 * 480
    assert len(page.requested) == requests  # the model did not run again
    with page.expect_download() as download:
        page.click('#save')
    record = json.loads(Path(download.value.path()).read_text())
    assert record['objects']['det'][0]['name'] == 'bus' and isinstance(record['semantic']['sem'], str)
    assert page.locator('#times td').first.text_content() == 'network'


def test_a_file_that_is_no_image_is_said_to_be_none(page: Any, tmp_path: Path) -> None:
    (tmp_path / 'a.png').write_text('hello')
    page.set_input_files('#file', tmp_path / 'a.png')
    page.wait_for_function("document.getElementById('message').textContent.includes('the image')")
    assert page.locator('#save').is_disabled()


def test_frames_of_a_video_are_drawn(page: Any, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / 'a.webm'), cv2.VideoWriter_fourcc(*'VP80'), 10, (64, 48))
    for number in range(6):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    page.set_input_files('#file', tmp_path / 'a.webm')
    page.wait_for_function("document.getElementById('message').textContent === '6 frames'")
    page.wait_for_selector('#legend .name')
    with page.expect_download() as download:
        page.click('#save')
    records = json.loads(Path(download.value.path()).read_text())
    assert [round(record['seconds'], 2) for record in records] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
