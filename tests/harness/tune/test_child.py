"""A call in a process of its own, whose caller may be stopped meanwhile."""

import base64
import pickle
import subprocess
import sys


def test_a_caller_that_is_gone_is_no_error():
    request = base64.b64encode(pickle.dumps(("os", "cpu_count"))).decode()
    child = [sys.executable, "-m", "harness.tune.child", request]
    process = subprocess.Popen(child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
