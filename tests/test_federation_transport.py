"""Frames and mutual TLS: what is in order arrives as it was sent, and nothing else gets in or does harm."""

import contextlib
import datetime
import socket
import ssl
import stat
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.errors import Exit, InputError
from lepton_jax.federation import certificates, dialling, frames, listening, tls, transport
from lepton_jax.federation.frames import HEADER, MAGIC, VERSION, Frame, FrameError, Kind

MOST = 2**20
DTYPES = ("float32", "float64", "int32", "uint64", "uint8", "bool")


def reader(content: bytes):
    """`exactly` over bytes, and the list of what it was asked for."""
    asked, place = [], 0

    def exactly(nbytes):
        nonlocal place
        asked.append(nbytes)
        part = content[place : place + nbytes]
        place += nbytes
        if len(part) < nbytes:
            raise FrameError("cut")
        return bytearray(part)

    return exactly, asked


def sent(frame: Frame) -> bytes:
    return b"".join(bytes(part) for part in frames.written(frame))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
heads = st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars, max_size=3), max_size=4)
arrays = st.dictionaries(
    st.text("abc/_", min_size=1, max_size=8),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 2**32)),
    max_size=3,
)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(Kind), heads, arrays)
def test_a_frame_arrives_as_it_was_sent(kind, head, described):
    made = {
        name: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
        for name, (dtype, shape, seed) in described.items()
    }
    found = frames.read(reader(sent(Frame(kind, head, frames.packed(made))))[0], MOST)
    assert (found.kind, dict(found.head)) == (kind, head)
    opened = found.arrays()
    assert opened.keys() == made.keys()
    for name, array in made.items():
        assert opened[name].dtype == array.dtype
        np.testing.assert_array_equal(opened[name], array)


def test_a_frame_cut_anywhere_or_with_another_header_is_none():
    whole = sent(Frame(Kind.POLL, {"a": 1}, frames.packed({"x": np.arange(3)})))
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            frames.read(reader(whole[:length])[0], MOST).arrays()
    for bit in range(8 * 8):  # magic, version, kind, zero; another kind may be one that there is
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FrameError):
            assert frames.read(reader(bytes(changed))[0], MOST).kind != Kind.POLL


@pytest.mark.parametrize(("head", "body"), [(frames.MOST_HEAD + 1, 0), (0, MOST + 1), (2**32 - 1, 2**64 - 1)])
def test_what_is_too_large_is_refused_before_it_is_asked_for(head, body):
    exactly, asked = reader(HEADER.pack(MAGIC, VERSION, Kind.UPDATE, 0, head, body))
    with pytest.raises(FrameError, match="is above"):
        frames.read(exactly, MOST)
    assert asked == [HEADER.size]


HEADS = (b"[1]", b"{", b"\xff", b'{"a": NaN}', b"[" * 60000)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: repr(head[:10]))
def test_a_head_that_is_no_dict_of_json_is_refused(head):
    content = HEADER.pack(MAGIC, VERSION, Kind.POLL, 0, len(head), 0) + head
    with pytest.raises(FrameError, match="the head is no"):
        frames.read(reader(content)[0], MOST)


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 2**63))
def test_a_body_of_other_bytes_holds_no_arrays(content, length):
    for body in (content, length.to_bytes(8, "little") + content):
        with pytest.raises(FrameError, match="holds no arrays"):
            frames.opened(body)


def test_a_head_above_its_cap_is_not_sent():
    with pytest.raises(FrameError, match="is above"):
        frames.written(Frame(Kind.POLL, {"a": "x" * frames.MOST_HEAD}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    out = tmp_path_factory.mktemp("certificates")
    certificates.create(out, ["a", "b"], 1)
    return out


class Coordinator:
    """Answers with the question and who asked it, and remembers who was refused and why."""

    def __init__(self, place, most=MOST, port=0):
        self.refused: list[tuple[str, str]] = []
        self.heard: list[str] = []
        own = tls.identity(place, "coordinator")
        socket = listening.bound("127.0.0.1", port)
        refuse = lambda *why: self.refused.append(why)  # noqa: E731
        self.port = socket.getsockname()[1]
        self.listener = listening.Listener(socket, own, self.answer, most, refuse, self.heard.append)

    def answer(self, name, frame):
        return Frame(Kind.OK, {"name": name, "asked": dict(frame.head)}, frame.body)

    def saw(self, count=1):
        """What was refused, once so many were."""
        deadline = time.monotonic() + 20
        while len(self.refused) < count:
            assert time.monotonic() < deadline, self.refused
            time.sleep(0.01)
        return self.refused


@pytest.fixture
def coordinator(place):
    made = Coordinator(place)
    yield made
    made.listener.close()


def dialled(place, name, port, **options):
    own = tls.identity(place, name)
    return contextlib.closing(dialling.Dialled("127.0.0.1", port, own, MOST, **{"patience": 20, **options}))


def works(place, port):
    body = frames.packed({"x": np.arange(1000)})
    with dialled(place, "a", port) as client:
        for number in range(3):
            reply = client.exchange(Frame(Kind.POLL, {"number": number}, body))
            assert reply.head == {"name": "a", "asked": {"number": number}}
            assert reply.body == body


def test_an_exchange_over_tls_and_who_asks_is_in_the_certificate(place, coordinator):
    works(place, coordinator.port)
    with dialled(place, "b", coordinator.port) as client:
        assert client.exchange(Frame(Kind.POLL, {"name": "a"})).head["name"] == "b"
    assert not coordinator.refused


def test_in_one_process_it_is_a_call(coordinator):
    reply = transport.InProcess(coordinator.answer, "c").exchange(Frame(Kind.POLL, {"x": 1}))
    assert reply.head == {"name": "c", "asked": {"x": 1}}


def strangers(place, tmp_path):
    """Certificates that are not to be taken: {what: (directory, name)}."""
    certificates.create(tmp_path / "other", ["a"], 1)
    (tmp_path / "other" / "ca.pem").write_bytes((place / "ca.pem").read_bytes())
    authority = certificates._opened(place)
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=9)
    for what, when in (("expired", long_ago), ("early", later)):
        (tmp_path / what).mkdir()
        (tmp_path / what / "ca.pem").write_bytes((place / "ca.pem").read_bytes())
        certificates._write(tmp_path / what, "a", certificates.issued("a", 1, authority, when))
    return {
        "of another authority": (tmp_path / "other", "a"),
        "expired": (tmp_path / "expired", "a"),
        "not valid yet": (tmp_path / "early", "a"),
        "the coordinator's own": (place, "coordinator"),  # serves servers only
    }


def test_certificates_that_are_not_good_are_refused_and_logged(place, coordinator, tmp_path):
    for count, (what, (directory, name)) in enumerate(strangers(place, tmp_path).items(), 1):
        with dialled(directory, name, coordinator.port) as client, pytest.raises(InputError) as caught:
            client.exchange(Frame(Kind.POLL))
        assert "refuses this node's certificate" in caught.value.problem, what
        assert coordinator.saw(count)[-1][1].startswith("no handshake: "), what
    works(place, coordinator.port)


def test_a_coordinator_whose_certificate_is_not_good_is_refused_by_clients(place, tmp_path):
    certificates.create(tmp_path, ["a"], 1)
    false = Coordinator(tmp_path)
    with dialled(place, "a", false.port) as client, pytest.raises(InputError, match="shows a certificate that is not"):
        client.exchange(Frame(Kind.POLL))
    false.listener.close()
    for name in ("coordinator.pem", "coordinator.key"):  # a node that listens
        (tmp_path / name).write_bytes((place / name.replace("coordinator", "b")).read_bytes())
    (tmp_path / "ca.pem").write_bytes((place / "ca.pem").read_bytes())
    false = Coordinator(tmp_path)
    with dialled(place, "a", false.port) as client, pytest.raises(InputError, match="shows a certificate that is not"):
        client.exchange(Frame(Kind.POLL))
    false.listener.close()


def test_someone_whose_frame_is_on_its_way_is_heard_of_before_it_has_come(place, coordinator):
    frame = sent(Frame(Kind.UPDATE, {}, bytes(1000)))
    with secured(place, coordinator.port) as connection:
        for number in range(4):
            connection.sendall(frame[number * 10 : number * 10 + 10])
            time.sleep(0.6 * listening.PULSE)
        assert 2 <= len(coordinator.heard) <= 4
        assert set(coordinator.heard) == {"a"}


def anonymous(place, version):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(place / "ca.pem")
    made.minimum_version = made.maximum_version = version
    return made


def secured(place, port, version=ssl.TLSVersion.TLSv1_3, name="a"):
    context = anonymous(place, version)
    if name:
        context.load_cert_chain(place / f"{name}.pem", place / f"{name}.key")
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    return context.wrap_socket(plain, server_hostname="coordinator")


def heard(connection) -> bytes:
    with contextlib.suppress(OSError):
        return connection.recv(100)
    return b""


def test_no_certificate_or_an_older_tls_gets_no_further(place, coordinator):
    with secured(place, coordinator.port, name=None) as connection, contextlib.suppress(OSError):
        connection.sendall(sent(Frame(Kind.POLL)))
        assert heard(connection) == b""
    assert "certificate" in coordinator.saw(1)[-1][1]
    with pytest.raises(ssl.SSLError):
        secured(place, coordinator.port, ssl.TLSVersion.TLSv1_2)
    assert "no handshake" in coordinator.saw(2)[-1][1]
    works(place, coordinator.port)


PLAIN = {
    "a plaintext frame": sent(Frame(Kind.POLL, {"x": 1})),
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(10000),
}


@pytest.mark.parametrize("what", PLAIN)
def test_what_is_not_encrypted_is_refused(what, place, coordinator):
    with socket.create_connection(("127.0.0.1", coordinator.port), timeout=20) as connection:
        connection.sendall(PLAIN[what])
        answer = heard(connection)
    assert not answer.startswith(MAGIC)
    assert coordinator.saw()[0][1].startswith("no handshake")
    works(place, coordinator.port)


WRONG = {
    "oversized": (HEADER.pack(MAGIC, VERSION, Kind.UPDATE, 0, 0, 2**40), "is above"),
    "truncated": (sent(Frame(Kind.POLL, {"x": "y" * 100}))[:-5], "in the middle"),
    "half a header": (MAGIC, "in the middle"),
    "no frame": (b"x" * 100, "does not begin"),
    "of another version": (HEADER.pack(MAGIC, VERSION + 1, Kind.POLL, 0, 0, 0), "version"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_frame_of_a_known_node_ends_its_connection_and_no_other(what, place, coordinator):
    content, why = WRONG[what]
    with dialled(place, "b", coordinator.port) as other:
        other.exchange(Frame(Kind.POLL))
        with secured(place, coordinator.port) as connection:
            connection.sendall(content)
            if why == "in the middle":
                connection.shutdown(socket.SHUT_WR)
            else:
                assert heard(connection) == b""
        ((who, said),) = coordinator.saw()
        assert who == "a"
        assert why in said
        assert other.exchange(Frame(Kind.POLL)).kind == Kind.OK
    works(place, coordinator.port)


class Between:
    """Someone on the wire, who changes what passes to the coordinator."""

    def __init__(self, port, change):
        self.target, self.change, self.server = port, change, socket.create_server(("127.0.0.1", 0))
        self.port, self.sockets = self.server.getsockname()[1], [self.server]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                coordinator = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [client, coordinator]
                for source, sink, change in ((client, coordinator, self.change), (coordinator, client, bytes)):
                    threading.Thread(target=self.pass_on, args=(source, sink, change), daemon=True).start()

    def pass_on(self, source, sink, change):
        with contextlib.suppress(OSError):
            while content := source.recv(2**16):
                sink.sendall(change(content))
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_changed_byte_on_the_wire_is_noticed_and_the_frame_is_sent_again(place, coordinator):
    passed, changed = 0, 0

    def change(content):
        nonlocal passed, changed
        passed += len(content)
        if passed > 50_000 and not changed:
            changed = 1
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    body = frames.packed({"x": np.arange(20_000)})
    between = contextlib.closing(Between(coordinator.port, change))
    with between as between, dialled(place, "a", between.port) as client:
        assert client.exchange(Frame(Kind.UPDATE, {}, body)).body == body
    assert changed
    ((who, why),) = coordinator.saw()
    assert who == "a"
    assert "mac" in why
    works(place, coordinator.port)


def test_silence_has_an_end(place, coordinator, monkeypatch):
    for name in ("HANDSHAKE", "IDLE", "FRAME"):
        monkeypatch.setattr(tls, name, 0.2)
    with socket.create_connection(("127.0.0.1", coordinator.port), timeout=20) as silent:
        assert coordinator.saw(1)[-1][1].startswith("no handshake")
        assert heard(silent) == b""
    with secured(place, coordinator.port):
        assert "timed out" in coordinator.saw(2)[-1][1]
    with secured(place, coordinator.port) as slow:  # a byte now and then does not keep a frame open
        for byte in MAGIC * 4:
            with contextlib.suppress(OSError):
                slow.sendall(bytes([byte]))
            time.sleep(0.05)
        assert "timed out" in coordinator.saw(3)[-1][1]
    works(place, coordinator.port)


def test_a_client_comes_back_to_a_coordinator_that_was_away(place):
    first = Coordinator(place)
    with dialled(place, "a", first.port, backoff=0.05) as client:
        client.exchange(Frame(Kind.POLL))
        first.listener.close()
        made = []
        threading.Timer(0.5, lambda: made.append(Coordinator(place, port=first.port))).start()
        assert client.exchange(Frame(Kind.POLL)).kind == Kind.OK
        made[0].listener.close()
    with dialled(place, "a", first.port, backoff=0.05, patience=0.2) as client, pytest.raises(InputError) as caught:
        client.exchange(Frame(Kind.POLL))
    assert caught.value.code == Exit.INTERNAL
    assert "has not answered for 0.2 s" in caught.value.problem


def test_keys_are_for_their_owner_alone_and_nodes_can_be_added(tmp_path):
    written = certificates.create(tmp_path / "c", ["a", "b"], 30)
    assert {path.name for path in written} == {
        f"{n}.{e}" for n in ("ca", "coordinator", "a", "b") for e in ("key", "pem")
    }
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    before = {path: path.read_bytes() for path in written}
    assert {path.name for path in certificates.create(tmp_path / "c", ["d"], 30)} == {"d.key", "d.pem"}
    assert before == {path: path.read_bytes() for path in written}
    with pytest.raises(InputError, match="has a certificate of a already"):
        certificates.create(tmp_path / "c", ["a"], 30)


@pytest.mark.parametrize(
    ("nodes", "days", "problem"),
    [
        (["A b"], 30, "cannot be the name"),
        (["../x"], 30, "cannot be the name"),
        (["coordinator"], 30, "cannot be the name"),
        (["a", "a"], 30, "named twice"),
        ([], 30, "are none"),
        (["a"], 0, "--days"),
        (["a"], float("nan"), "--days"),
    ],
)
def test_names_that_are_none_are_refused_and_nothing_is_written(nodes, days, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        certificates.create(tmp_path / "c", nodes, days)
    assert not (tmp_path / "c").exists()


def test_a_missing_file_or_a_key_that_does_not_fit_is_named(place, tmp_path):
    with pytest.raises(InputError, match=r"has no z\.pem"):
        tls.identity(place, "z")
    for name, source in (("ca.pem", "ca.pem"), ("a.pem", "a.pem"), ("a.key", "b.key")):
        (tmp_path / name).write_bytes((place / source).read_bytes())
    with pytest.raises(InputError, match=r"a\.pem cannot be used"):
        tls.context(tls.identity(tmp_path, "a"), server=False)


def test_a_taken_port_is_an_input_error(coordinator):
    with pytest.raises(InputError, match="cannot be listened on"):
        listening.bound("127.0.0.1", coordinator.port)
