"""What a program of others does with qemu.qmp: the path of the socket is its argument."""
import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


async def main(path):
    client = QMPClient("test")
    await client.connect(path)
    said = []
    heard = EventListener(("STOP", "RESUME", "SHUTDOWN"))
    with client.listen(heard):
        said.append((await client.execute("query-status"))["status"])
        await client.execute("stop")
        said.append((await client.execute("query-status"))["status"])
        said.append((await heard.get())["event"])
        await client.execute("cont")
        said.append((await heard.get())["event"])
        try:
            await client.execute("no-such-command")
        except ExecuteError as error:
            said.append(error.error_class)
        many = [client.execute("query-version") for _ in range(20)]
        answers = await asyncio.gather(*many)
        assert all(answer == answers[0] for answer in answers)
        text = await client.execute("human-monitor-command", {"command-line": "info status"})
        assert text == "VM status: running\r\n", text
        on = [{"capability": "events", "state": True}]
        await client.execute("migrate-set-capabilities", {"capabilities": on})
        with client.listener("MIGRATION") as moves:
            await client.execute("migrate", {"uri": "exec:cat >/dev/null"})
            async for event in moves:
                said.append(event["data"]["status"])
                if said[-1] == "completed":
                    break
        said += [(await heard.get())["event"], (await client.execute("query-status"))["status"]]
        await client.execute("quit")
        said.append((await heard.get())["event"])
    try:
        await client.disconnect()
    except EOFError:
        # The machine has gone first.
        pass
    print(*said)


asyncio.run(main(sys.argv[1]))
