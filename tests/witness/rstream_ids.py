#!/usr/bin/env python3
"""Reads a stream with a client that is not ours and prints the ids of its events.

A witness for the entry's frame: the AMQP decoder, the sub-entry batches and the LZ4 frames are those of PyPI's
`rstream` and `lz4`; nothing here is shared with Tillstream. Reads each partition from its first entry to the entry
that is last when the program starts, joins parts, and prints the set of ids of entries of kind `event` and `read`, sorted, one a
line. Counts go to standard error as JSON. Exit code 1: something in the stream could not be read, or the end did not
come within the deadline.

    pip install rstream lz4
    rstream_ids.py --port 5552 --user guest --password guest --stream tillstream [--super-stream]
"""

import argparse
import asyncio
import json
import struct
import sys
import zlib

import lz4.frame
import rstream
from rstream.compression import CompressionType, ICompressionCodec, StreamCompressionCodecs

# Part's place in the header that the property "ts" holds: index, count, length, CRC-32.
PART = struct.Struct(">HHII")
PART_AT = 48
KINDS = {1: "event", 2: "read", 3: "fence", 4: "end", 6: "marker"}


class Lz4(ICompressionCodec):
    """rstream has no LZ4 of its own; reading needs `uncompress` only."""

    def uncompress(self, compressed_data, uncompressed_data_size):
        plain = lz4.frame.decompress(compressed_data)
        if len(plain) != uncompressed_data_size:
            raise ValueError("a sub-entry batch has another length than it says")
        return plain

    def compress(self, messages):
        raise NotImplementedError("this program only reads")

    def compressed_size(self):
        return 0

    def uncompressed_size(self):
        return 0

    def messages_count(self):
        return 0

    def compression_type(self):
        return CompressionType.Lz4.value

    def data(self):
        return b""


def text(value):
    return value.decode() if isinstance(value, (bytes, bytearray, memoryview)) else value


class Partition:
    """What one stream holds."""

    def __init__(self, name):
        self.name = name
        self.ids = set()
        self.counts = {}
        self.repeats = 0
        self.parts = []

    def take(self, message):
        properties = {text(k): v for k, v in (message.application_properties or {}).items()}
        kind = text(properties["kind"])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        body = message.body
        body = b"".join(bytes(piece) for piece in body) if isinstance(body, (list, tuple)) else bytes(body)
        if kind == "part":
            kind, body = self.join(bytes(properties["ts"]), body)
        if kind in ("event", "read"):
            name = json.loads(body)["id"]
            self.repeats += name in self.ids
            self.ids.add(name)

    def join(self, header, body):
        index, count, length, crc = PART.unpack_from(header, PART_AT)
        if index == 0:
            self.parts = []
        if index != len(self.parts):
            raise ValueError("a part is missing")
        self.parts.append(body)
        if index + 1 < count:
            return "part", b""
        whole = b"".join(self.parts)
        if len(whole) != length or zlib.crc32(whole) != crc:
            raise ValueError("parts do not make their whole")
        return KINDS[header[1]], whole


def consumer(args, stopped):
    async def closed(info):
        if not stopped.done():
            stopped.set_exception(ConnectionError(f"connection closed: {info.reason}"))

    return rstream.Consumer(
        host=args.host,
        port=args.port,
        username=args.user,
        password=args.password,
        vhost=args.vhost,
        frame_max=args.frame_max,
        load_balancer_mode=args.load_balancer,
        on_close_handler=closed,
    )


async def subscribe(args, stream, offset_type, take, seconds):
    """Subscribes and waits until `take(message, offset)` answers true. A chunk is handed over as a whole."""
    done = asyncio.get_running_loop().create_future()

    def deliver(raw, context):
        # An error here would end rstream's listener silently.
        try:
            if take(raw, context.offset) and not done.done():
                done.set_result(None)
        except Exception as error:
            if not done.done():
                done.set_exception(error)

    reader = consumer(args, done)
    await reader.start()
    try:
        await reader.subscribe(stream, deliver, offset_specification=rstream.ConsumerOffsetSpecification(offset_type, None))
        await asyncio.wait_for(done, seconds)
    finally:
        if not done.done():
            done.cancel()
        await reader.close()


async def last_offset(args, stream):
    """Offset of the last entry, None for an empty stream. The last chunk tells; an empty stream sends none."""
    seen = []

    def take(_, offset):
        seen.append(offset)
        return True

    try:
        await subscribe(args, stream, rstream.OffsetType.LAST, take, args.empty_after)
    except asyncio.TimeoutError:
        return None
    return max(seen)


async def read(args, stream):
    partition = Partition(stream)
    end = await last_offset(args, stream)
    if end is None:
        return partition

    def take(raw, offset):
        if offset <= end:
            partition.take(rstream.amqp_decoder(raw))
        return offset >= end

    await subscribe(args, stream, rstream.OffsetType.FIRST, take, args.deadline)
    return partition


async def streams(args):
    if not args.super_stream:
        return [args.stream]
    metadata = rstream.SuperStreamConsumer(
        host=args.host, port=args.port, username=args.user, password=args.password, vhost=args.vhost, super_stream=args.stream
    )
    await metadata.start()
    try:
        client = await metadata.default_client
        return sorted(await client.partitions(args.stream))
    finally:
        await metadata.close()


async def main():
    options = argparse.ArgumentParser(description="Print the ids of the events in a stream.")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=5552)
    options.add_argument("--user", default="guest")
    options.add_argument("--password", default="guest")
    options.add_argument("--vhost", default="/")
    options.add_argument("--stream", required=True)
    options.add_argument("--super-stream", action="store_true", help="the stream is a super stream: read all its partitions")
    options.add_argument("--load-balancer", action="store_true", help="ignore the host that the broker advertises")
    options.add_argument("--frame-max", type=int, default=1 << 20)
    options.add_argument("--empty-after", type=float, default=3, help="seconds after which a stream without an answer is empty")
    options.add_argument("--deadline", type=float, default=120, help="seconds a partition may take")
    args = options.parse_args()
    StreamCompressionCodecs.register_codec(CompressionType.Lz4, Lz4())

    ids, counts, repeats = set(), {}, 0
    for stream in await streams(args):
        partition = await read(args, stream)
        ids |= partition.ids
        repeats += partition.repeats
        for kind, count in partition.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    for name in sorted(ids):
        # An id may hold a table's name, and that a line break.
        print(name.replace("\\", "\\\\").replace("\n", "\\n"))
    print(json.dumps({"ids": len(ids), "repeats": repeats, "entries": counts}), file=sys.stderr)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except Exception as error:
        print(f"rstream_ids: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
