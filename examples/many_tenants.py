"""A small server of many adapters over one base, and a load test of it on this machine.

Rows of different tenants share a batch, in one compiled program; an adapter is added while requests
are answered, without compiling anything. An example, not a product: no authentication, one model.

Run: python examples/many_tenants.py              the load test, on a small random BERT
     python examples/many_tenants.py --port 8000  serve until Ctrl-C

POST /predict     {"adapter": "tenant-3", "tokens": [5, 17, 9]}     -> {"logits": [...]}
POST /adapters    {"name": "tenant-64", "directory": "adapters/64"} -> {"rows": 66}
"""

import argparse
import contextlib
import functools
import http.client
import json
import queue
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
from transformers import BertConfig

import lntune_jax as lnt

BATCH, LENGTH, VOCABULARY, TENANTS, CLIENTS = 16, 32, 1000, 64, 16
TUNING = lnt.LNTuningConfig()


def make_model():
    """A random BERT: in its place comes `lnt.models.from_pretrained(directory, "SEQ_CLS")`."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": VOCABULARY}
    config = BertConfig(num_hidden_layers=4, num_attention_heads=4, **sizes)
    model = lnt.models.from_config(config, "SEQ_CLS", num_labels=2)
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        noise = draw.normal(0, 0.1, leaf.shape).astype(leaf.dtype)
        return jax.numpy.asarray(noise + (path[-1].key == "scale"))

    return model, jax.tree_util.tree_map_with_path(fill, model.params)


def make_adapter(params, seed):  # in the place of a trained one
    draw = np.random.default_rng(seed)
    trainable, _ = lnt.partition_params(params, TUNING)
    return {path: leaf + draw.normal(0, 0.3, leaf.shape) for path, leaf in trainable.items()}


class Batcher:
    """Collects rows from all requests, and answers up to BATCH of them with one program.

    The bank is immutable: a new adapter is a new bank put in the old one's place, and a batch
    that is under way goes on with the bank it began with.
    """

    def __init__(self, model, params, bank):
        self.params, self.bank, self.compilations = params, bank, 0
        self._frozen = lnt.bank.freeze_base(params, bank)
        self._rows, self._adding = queue.Queue(), threading.Lock()

        def predict(leaves, ids, frozen, tokens, mask):
            self.compilations += 1  # runs when JAX traces, once a shape
            merged = lnt.bank.merge_rows(lnt.bank.take_rows(leaves, ids), frozen)
            return model.apply(merged, tokens, mask).logits

        self._predict = jax.jit(predict)
        threading.Thread(target=self._work, daemon=True).start()

    def predict(self, adapter, tokens):
        """The logits of one row; waits for its batch."""
        self.bank.get_ids([adapter])  # an unknown name is this request's error, not the batch's
        answer = Future()
        self._rows.put((adapter, tokens, answer))
        return answer.result()

    def add(self, name, source):
        """Adds an adapter: a directory, or a dict of leaves."""
        with self._adding:
            bank = lnt.bank.add_adapter(self.bank, name, source, params=self.params)
            if new := bank.leaves.keys() - self.bank.leaves.keys():
                raise lnt.LNTuningError(f"{name!r} tunes what has no rows here: {sorted(new)}")
            self.bank = bank
        return len(bank.names)

    def _work(self):
        while True:
            rows = [self._rows.get()]
            with contextlib.suppress(queue.Empty):
                while len(rows) < BATCH:
                    rows.append(self._rows.get_nowait())
            try:
                logits = self._run(self.bank, rows)
            except Exception as error:  # the requests fail, the server goes on
                for _, _, answer in rows:
                    answer.set_exception(error)
                continue
            for (_, _, answer), own in zip(rows, logits, strict=False):
                answer.set_result(own.tolist())

    def _run(self, bank, rows):
        tokens, mask = np.zeros((2, BATCH, LENGTH), np.int32)
        mask[:, 0] = 1  # a row without any token has no defined attention
        for place, (_, own, _) in enumerate(rows):
            tokens[place, : len(own)], mask[place, : len(own)] = own, 1
        ids = bank.get_ids([row[0] for row in rows] + ["base"] * (BATCH - len(rows)))
        return np.asarray(self._predict(bank.leaves, ids, self._frozen, tokens, mask))


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `Batcher`: what is wrong with a request is one sentence of JSON."""

    protocol_version = "HTTP/1.1"

    def __init__(self, batcher, *arguments):
        self.batcher = batcher
        super().__init__(*arguments)

    def do_POST(self):
        try:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/predict":
                self._answer(200, {"logits": self._predict(**given)})
            elif self.path == "/adapters":
                names = self.batcher.add(given["name"], Path(given["directory"]))
                self._answer(200, {"rows": names})
            else:
                self._answer(404, {"error": f"no such path: {self.path}"})
        except lnt.LNTuningError as error:
            self._answer(404 if self.path == "/predict" else 400, {"error": str(error)})
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, {"error": f"not understood: {error}"})

    def _predict(self, adapter, tokens):
        ids = np.asarray(tokens)
        fits = ids.ndim == 1 and 1 <= len(ids) <= LENGTH and ids.dtype.kind == "i"
        if not fits or ids.min() < 0 or ids.max() >= VOCABULARY:
            raise ValueError(f"tokens must be 1 to {LENGTH} numbers from 0 to {VOCABULARY - 1}")
        return self.batcher.predict(adapter, ids)

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # no line for each request


class Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 128, True


def start_server(batcher, port=0):
    server = Server(("127.0.0.1", port), functools.partial(Handler, batcher))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def send(connection, path, content):
    connection.request("POST", path, json.dumps(content))
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def send_once(port, path, content):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        return send(connection, path, content)


def send_load(port, names, seconds):
    """Requests in a row from CLIENTS connections; how many were answered in a second."""
    end = time.perf_counter() + seconds

    def client(number):
        connection, draw = http.client.HTTPConnection("127.0.0.1", port), 0
        while time.perf_counter() < end:
            name = names[(number + draw * CLIENTS) % len(names)]
            tokens = [(number * 31 + draw + place) % VOCABULARY for place in range(24)]
            status, reply = send(connection, "/predict", {"adapter": name, "tokens": tokens})
            assert status == 200, reply
            draw += 1
        connection.close()
        return draw

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answered = sum(pool.map(client, range(CLIENTS)))
    return answered / (time.perf_counter() - start)


def test_load(seconds):
    model, params = make_model()
    adapters = {f"tenant-{number}": make_adapter(params, number) for number in range(TENANTS)}
    bank = lnt.bank.make_bank(params, adapters, config=TUNING, capacity=TENANTS + 8)
    batcher = Batcher(model, params, bank)
    port = start_server(batcher).server_address[1]
    # Tenants that share a batch get what each would get alone.
    tokens = list(range(1, 25))
    requests = [{"adapter": name, "tokens": tokens} for name in adapters]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(functools.partial(send_once, port, "/predict"), requests))
    _, frozen = lnt.partition_params(params, TUNING)
    alone = jax.jit(lambda own, ids: model.apply(lnt.merge_params(own, frozen), ids).logits[0])
    expected = [alone(own, np.array([tokens])) for own in adapters.values()]
    found = [reply["logits"] for _, reply in answers]
    worst = np.abs(np.array(found) - expected).max()
    print(f"largest difference from one at a time: {worst:.1e}")
    assert worst < 1e-5
    # One tenant and all of them, in turns, so that a busy machine slows both.
    rates = {1: [], TENANTS: []}
    for _ in range(3):
        for count, measured in rates.items():
            measured.append(send_load(port, list(adapters)[:count], seconds))
    one, many = (float(np.median(measured)) for measured in rates.values())
    print(f"1 tenant: {one:.0f} requests/s; {TENANTS} tenants: {many:.0f} ({many / one:.2f} of it)")

    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        lnt.save_adapter(Path(directory) / "new", make_adapter(params, 99), TUNING, base=params)
        load = pool.submit(send_load, port, list(adapters), seconds)
        content = {"name": "tenant-new", "directory": str(Path(directory) / "new")}
        print("added under load:", *send_once(port, "/adapters", content))
        print(f"meanwhile: {load.result():.0f} requests/s")
    print("the new one:", send_once(port, "/predict", requests[0] | {"adapter": "tenant-new"})[0])
    print("an unknown one:", *send_once(port, "/predict", requests[0] | {"adapter": "nobody"}))
    print(f"programs compiled: {batcher.compilations}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="serve here until Ctrl-C")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    if options.port is None:
        test_load(options.seconds)
    else:
        model, params = make_model()
        batcher = Batcher(model, params, lnt.bank.make_bank(params, config=TUNING, capacity=1024))
        start_server(batcher, options.port)
        print(f"serving on http://127.0.0.1:{options.port}")
        threading.Event().wait()


if __name__ == "__main__":
    main()
