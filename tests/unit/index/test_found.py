"""What a search finds, and where."""

from __future__ import annotations

from store.index import Kind
from store.library import Store
from store.workspace_state import Place
from tests.support.indexed import ACTOR, find, paths, say


async def test_a_message_is_found_with_its_place(store: Store) -> None:
    (hit,) = await find(store, "lisbon")
    assert (hit.kind, hit.path, hit.number, hit.line, hit.role) == (
        Kind.MESSAGE,
        "demo/chats/trip/history.md",
        2,
        7,
        "assistant",
    )
    chat = await (await store.workspace("demo")).chat("trip")
    text = (await chat.text()).decode()
    assert "Lisbon" in text.splitlines()[hit.line - 1]
    assert hit.snippet == "Lisbon. Or Porto."
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["Lisbon"]


async def test_the_line_is_the_one_where_the_words_stand(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await chat.save_text(
        b"# A title\n\nBefore all.\n\n\n## user\n\n\n\none\n\n```\n## user\n```\n\n\\## user\nneedle one\n"
        b"## assistant \n\n\n\n\ntwo\nthree needle\n",
        ACTOR,
    )
    lines = (await chat.text()).decode().split("\n")
    hits = await find(store, "needle")
    assert sorted(lines[hit.line - 1] for hit in hits) == ["needle one", "three needle"]
    assert sorted(hit.number for hit in hits) == [1, 2]
    (before,) = await find(store, "before all")
    assert (before.number, lines[before.line - 1]) == (0, "Before all.")


async def test_titles_names_labels_and_attachments_are_found(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await chat.change(ACTOR, title="Summer plans", labels=["Urlaub", "füße"])
    await chat.attach("Q3-report_final.pdf", b"bytes", ACTOR)
    assert await paths(store, "summer") == ["demo/chats/trip"]
    assert await paths(store, "trip") == ["demo/chats/trip"]
    assert await paths(store, "fusse") == []
    assert await paths(store, "fuße") == ["demo/chats/trip/chat.json"]
    assert await paths(store, "final report*") == ["demo/chats/trip/attachments/Q3-report_final.pdf"]
    await chat.rename_attachment("Q3-report_final.pdf", "other.pdf", ACTOR)
    assert await paths(store, "report") == []
    await chat.remove_attachment("other.pdf", ACTOR)
    assert await paths(store, "other") == []


async def test_a_search_can_be_narrowed(store: Store) -> None:
    other = await store.create_workspace("other", ACTOR)
    chat = await other.create_chat("porto", ACTOR)
    await say(chat, "Porto", "Porto, Porto")
    assert len(await find(store, "porto")) == 5
    assert await paths(store, "porto", workspace="demo") == ["demo/chats/trip/history.md", "demo/chats/work/history.md"]
    assert len(await find(store, "porto", workspace=other.id)) == 3
    assert {hit.role for hit in await find(store, "porto", role="assistant")} == {"assistant"}
    assert await paths(store, "porto", kinds=frozenset({Kind.TITLE})) == ["other/chats/porto"]
    assert len(await find(store, "porto", kinds=frozenset({Kind.MESSAGE}), limit=3)) == 3
    assert await find(store, "porto -wine", kinds=frozenset({Kind.LABEL})) == []
    (best, *_) = await find(store, "porto")
    assert best.kind is Kind.TITLE


async def test_archived_chats_are_found_and_trashed_ones_only_if_asked(store: Store) -> None:
    workspace = await store.workspace("demo")
    trip, work = [await workspace.chat(name) for name in ("trip", "work")]
    await workspace.move_chat(trip.id, Place.ARCHIVE, "trip", ACTOR)
    assert await paths(store, "lisbon") == ["demo/archive/trip/history.md"]
    await workspace.trash_chat(trip.id, ACTOR)
    await workspace.create_chat("trip", ACTOR, chat=None)
    assert await paths(store, "lisbon") == []
    assert await paths(store, "lisbon", trash=True) == ["demo/trash/trip/history.md"]
    again = await workspace.chat("trip")
    await workspace.trash_chat(again.id, ACTOR)
    await say(again, "needle")
    assert await paths(store, "needle", trash=True) == ["demo/trash/trip~2/history.md"]
    await workspace.move_chat(again.id, Place.CHATS, "new name", ACTOR)
    assert await paths(store, "needle") == ["demo/chats/new name/history.md"]
    assert await paths(store, "name") == ["demo/chats/new name"]
    await workspace.trash_chat(work.id, ACTOR)
    await workspace.trash_chat(again.id, ACTOR)
    await workspace.trash(ACTOR)
    assert await paths(store, "needle", trash=True) == []


async def test_hostile_content(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.create_chat("hostile", ACTOR)
    long = "QUJD" * (3 * 512 * 1024)
    await say(chat, "before\0after \x1b[31mred\x1b[0m \u202eright", f"{long} needle {long}", "x " * 100_000 + "hay")
    (hit,) = await find(store, "after")
    assert "\x1b[31m" in hit.snippet  # whoever shows it escapes it
    (hit,) = await find(store, "needle")
    assert "needle" in hit.snippet
    assert len(hit.snippet) < 1000
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["needle"]
    (hit,) = await find(store, "hay")
    assert hit.snippet.endswith("x x hay")
    assert [await paths(store, word) for word in ("before", "right", "31mred")] == [
        ["demo/chats/hostile/history.md"]
    ] * 3
