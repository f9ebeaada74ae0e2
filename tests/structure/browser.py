"""A page in a headless Chromium, over its debugging pipe: in real time, with a list of all that it asks for."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-dev-shm-usage --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--no-first-run --disable-background-networking --window-size=1200,1000 --remote-debugging-pipe"
)


class Browser:
    """A window of 1200 x 1000 pixels; WebGL is computed by the processor."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self._numbers = itertools.count(1)
        self._unread = b""
        self.asked: list[str] = []
        """Addresses of all requests, but for parts of a page itself."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def visit(self, page: Path, code: str, *, dark: bool = False) -> Any:
        """What `code`, the inside of an async function, returns once the page is loaded.

        Raises:
            RuntimeError: the code has thrown.
        """
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        session = {"sessionId": self._session}
        self._call("Emulation.setEmulatedMedia", **session, features=[scheme])
        for domain in ("Network", "Page"):
            self._call(f"{domain}.enable", **session)
        self._call("Page.navigate", **session, url=page.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass
        whole = f"(async () => {{ {code} }})()"
        answer = self._call("Runtime.evaluate", **session, expression=whole, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def _call(self, method: str, sessionId: str = "", **params: Any) -> Any:
        number = next(self._numbers)
        session = {"sessionId": sessionId} if sessionId else {}
        self._commands.write(json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = self._answers.read1(1 << 20)
            if not more:
                raise RuntimeError("the browser has gone")
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            self.asked += [] if address.startswith(("data:", "blob:")) else [address]
        return message


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended with the block."""
    assert CHROMIUM
    (theirs, commands), (answers, out) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, out)]  # clear of 3 and 4, where it looks for them

    def place() -> None:
        for number, end in enumerate(ends, start=3):
            os.dup2(end, number)

    process = subprocess.Popen(
        [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}"],
        preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (*ends, theirs, out):
        os.close(end)
    try:
        yield Browser(commands, answers)
    finally:
        process.terminate()
        process.wait(60)
