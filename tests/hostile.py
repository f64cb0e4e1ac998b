"""Programs that try to be judged right without being right, to get out, or to do damage. The task: `f(x)` is 3 x + 1.

Each is source text for the sandbox's tests. They are numbered by what they attack: the verdict, resources, the way out,
the parser and the interpreter. Written after published cheats of code rewards (see the docstrings of
`aligntune.grading.sandbox`).
"""

from __future__ import annotations

LIE = "def f(x):\n    return 0\n"

VERDICT = {
    "exit at import": "import os\nos._exit(0)",
    "system exit": "raise SystemExit(0)",
    "exit in the call": "import os\ndef f(x):\n    os._exit(0)",
    "print markers": "print('PASS', 'passed', 'OK', 'All tests passed')\n" + LIE,
    "always equal object": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "always equal int": "class E(int):\n    def __eq__(self, o): return True\n    def __hash__(self): return 0\n"
    "def f(x): return E(0)",
    "always equal list": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "equal float": "class E(float):\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
    "def f(x): return E('nan')",
    "plain nan": "def f(x): return float('nan')",
    "lying class": "class E:\n    @property\n    def __class__(self): return int\n    def __eq__(self, o): return True\n"
    "def f(x): return E()",
    "right looking subclass": "class E(int): pass\ndef f(x): return E(3 * x + 1)",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + LIE,
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError",
    "fork": "import os\nif os.fork():\n    os._exit(0)\n" + LIE,
    "thread exits": "import threading, os, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), os._exit(0)), daemon=True).start()\n"
    "import time\ndef f(x):\n    time.sleep(1)\n    return 0",
    "signal handler": "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.1)\nimport time\ndef f(x):\n    time.sleep(1)\n    return 0",
    "patched builtins": "import builtins\nbuiltins.abs = builtins.all = builtins.len = lambda *a: 0\n"
    "builtins.isinstance = lambda *a: True\n" + LIE,
    "constants of the caller": "import sys\ndef f(x):\n    c = []\n    g = sys._getframe()\n    while g:\n"
    "        c += [k for k in g.f_code.co_consts if type(k) is int]\n        g = g.f_back\n"
    "    return max(c or [0])",
    "trace": "import sys\ndef t(frame, event, arg):\n    return t\nsys.settrace(t)\n" + LIE,
    "results in frames": "import sys\ng = sys._getframe()\nwhile g:\n"
    "    for k in ('passed', 'result', 'verdict', 'status'):\n        g.f_locals[k] = True\n    g = g.f_back\n" + LIE,
    "walk of objects": "import gc\nfor o in gc.get_objects():\n    if type(o) is dict and 'passed' in o:\n"
    "        o['passed'] = 99\n" + LIE,
    "reload": "import importlib, os\nimportlib.reload(os)\nos._exit(0)",
    "replace check": "import sys\nfor m in list(sys.modules.values()):\n    for k in ('check', 'judge', 'serve'):\n"
    "        if hasattr(m, k): setattr(m, k, lambda *a: None)\n" + LIE,
    "expected values in memory": "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is list and any(type(s) is str and 'assert' in s and 'f(' in s for s in o):\n"
    "            import re\n            return int(re.search(r'== (-?[0-9]+)', ''.join(map(str, o))).group(1))\n"
    "    return 0",
    "heap scan": "def f(x):\n    for line in open('/proc/self/maps'):\n        pass\n    return 3 * x + 1",
    "replies in advance": "import os, struct\nm = b'{\"value\":4}'\nfor fd in range(3, 32):\n    try:\n"
    "        for _ in range(50): os.write(fd, struct.pack('>I', len(m)) + m)\n    except OSError: pass\n" + LIE,
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"value\": 4}'\n" + LIE,
    "patched wire": "import sys\nw = sys.modules.get('wire')\nif w:\n    w.pack = lambda *a: {'x': 1}\n" + LIE,
    "unhashable in a set": 'import os, struct\nm = b\'{"value":{"s":[[1]]}}\'\ndef f(x):\n    for fd in range(3, 32):\n'
    "        try: os.write(fd, struct.pack('>I', len(m)) + m)\n        except OSError: pass\n    os._exit(0)",
    "pickle bomb": "class E:\n    def __reduce__(self):\n        return (print, ('owned',))\ndef f(x): return E()",
    "memo": "seen = {}\ndef f(x):\n    return seen.setdefault('v', 4)",
    "raise assertion": "def f(x):\n    raise AssertionError('passed')",
    "raise skip": "import unittest\ndef f(x):\n    raise unittest.SkipTest",
    "stop iteration": "def f(x):\n    raise StopIteration",
    "generator exit": "def f(x):\n    raise GeneratorExit",
    "keyboard interrupt": "def f(x):\n    raise KeyboardInterrupt",
    "no function": "x = 1",
    "wrong kind": "def f(x): return '4'",
    "true for one": "def f(x): return True",
}

RESOURCES = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "thread bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9,)).start()",
    "eight gigabytes": "a = bytearray(8 << 30)\n" + LIE,
    "slow growth": "a = []\nwhile True:\n    a.append(bytearray(1 << 20))",
    "shared memory": "open('/dev/shm/hostile', 'wb').write(b'x' * (1 << 20))\n" + LIE,
    "memfd": "import os\nd = os.memfd_create('a')\nos.write(d, b'x' * (1 << 20))\n" + LIE,
    "system v memory": "import ctypes\nif ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) < 0: raise OSError\n" + LIE,
    "fill the disk": "open('/tmp/hostile', 'wb').write(b'x' * (1 << 20))\n" + LIE,
    "make files": "for i in range(1000): open(f'/tmp/hostile{i}', 'w')\n" + LIE,
    "use up descriptors": "import os\na = []\nwhile True: a.append(os.open('/dev/null', 0))",
    "spin": "while True: pass",
    "sleep": "import time\nwhile True: time.sleep(1000)",
    "spin in c": "10 ** 10 ** 8",
    "slow pattern": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\n" + LIE,
    "slow sum": "sum(range(10 ** 13))\n" + LIE,
    "ignore signals": "import signal\nfor n in (signal.SIGTERM, signal.SIGXCPU, signal.SIGINT):\n"
    "    signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "stop oneself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "swallow everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "huge output": "while True: print('x' * 100000)",
    "huge errors": "import sys\nwhile True: print('x' * 100000, file=sys.stderr)",
    "huge reply": "def f(x): return 'x' * (50 << 20)",
    "deep reply": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "deep json": "import os, struct\nm = b'[' * 500000\ndef f(x):\n    for fd in range(3, 32):\n"
    "        try: os.write(fd, struct.pack('>I', len(m)) + m)\n        except OSError: pass\n    os._exit(0)",
    "huge number": "def f(x): return 1 << 10000000",
    "endless reply": "import itertools\ndef f(x): return itertools.count()",
    "close everything": "import os\nos.closerange(0, 100)\n" + LIE,
    "threads that stay": "import threading, time\ndef w():\n    while True: time.sleep(0.01)\n"
    "threading.Thread(target=w).start()\n" + LIE,
    "self containing": "def f(x):\n    a = []\n    a.append(a)\n    return a",
}

ESCAPE = {
    "kill the parent": "import os\nos.kill(os.getppid(), 9)\n" + LIE,
    "kill all": "import os\nos.kill(-1, 9)\n" + LIE,
    "kill by a library": "import ctypes, os\nif ctypes.CDLL(None).kill(os.getppid(), 9) < 0: raise OSError\n" + LIE,
    "kill by pidfd": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)\n" + LIE,
    "signal by owner": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())\n" + LIE,
    "trace the parent": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise OSError\n"
    + LIE,
    "read the parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()\n" + LIE,
    "read maps": "open('/proc/self/maps').read()\n" + LIE,
    "read shadow": "open('/etc/shadow').read()\n" + LIE,
    "read passwd": "open('/etc/passwd').read()\n" + LIE,
    "list home": "import os\nos.listdir('/root')\n" + LIE,
    "secrets in the environment": "import os\nv = os.environ['SANDBOX_SECRET']\n" + LIE,
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\n" + LIE,
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\n" + LIE,
    "abstract socket": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0hostile')\n" + LIE,
    "exec": "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch /tmp/hostile'])",
    "subprocess": "import subprocess\nsubprocess.run(['touch', '/tmp/hostile'])\n" + LIE,
    "system": "import os\nif os.system('touch /tmp/hostile'): raise OSError\n" + LIE,
    "symlink": "import os\nos.symlink('/etc/passwd', '/tmp/hostile')\n" + LIE,
    "chmod": "import os\nos.chmod('/tmp', 0o700)\n" + LIE,
    "remove a tree": "import shutil\nshutil.rmtree('/tmp')\n" + LIE,
    "raise limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n" + LIE,
    "limits of the parent": "import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\n" + LIE,
    "renice the parent": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\n" + LIE,
    "new namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError\n" + LIE,
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) < 0: raise OSError\n"
    + LIE,
    "io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 8, None) < 0: raise OSError\n" + LIE,
    "bpf": "import ctypes\nif ctypes.CDLL(None).syscall(321, 0, None, 0) < 0: raise OSError\n" + LIE,
    "read standard input": "import sys\nv = sys.stdin.read()\nif not v: raise OSError\n" + LIE,
    "become someone": "import os\nos.setuid(1)\n" + LIE,
    "grandchild by clone3": "import ctypes\nif ctypes.CDLL(None).syscall(435, None, 0) < 0: raise OSError\n" + LIE,
}

TEXT = {
    "segfault": "import ctypes\nctypes.string_at(0)\n" + LIE,
    "abort": "import os\nos.abort()",
    "recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g(): return g()\ng()",
    "nested brackets": "x = " + "(" * 5000 + ")" * 5000,
    "many nots": "x = " + "not " * 30000 + "1",
    "nul": "x = 1\0\n" + LIE,
    "lone surrogate": "x = '\ud800'\n" + LIE,
    "too long": "#" * 500_000 + "\n" + LIE,
    "another encoding": "# -*- coding: utf-7 -*-\n" + LIE,
    "other letters": "import 𝗈𝗌\n𝗈𝗌._exit(0)",
    "empty": "",
    "not python": "function f(x) { return 3 * x + 1 }",
}
HOSTILE = {**VERDICT, **RESOURCES, **ESCAPE, **TEXT}
