//! An attacker who can write everything but has no key: whatever is done to a log is found, where it was done, and an untouched
//! log is never accused. `INTERLOCK_TAMPERINGS` sets the number of rounds, `INTERLOCK_SEED` repeats one run.

use interlock_evidence::TILE;
use interlock_evidence::bundle::{self, BundleError, Writer};
use interlock_evidence::checkpoint::Signer;
use interlock_evidence::examine::{Examiner, Finding, Report, Trust};
use interlock_evidence::tree::{Frontier, leaf_hash};
use interlock_model::Timestamp;
use interlock_model::audit::{AuditDraft, AuditEntry, Broken, Hash};
use serde_json::json;

/// xorshift64*: enough to choose what to break.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }

    /// From 1 to `last`.
    fn entry(&mut self, last: u64) -> u64 {
        self.below(last) + 1
    }
}

fn draft(number: u64, dice: &mut Dice) -> AuditDraft {
    AuditDraft {
        at: Timestamp::from_micros(1_800_000_000_000_000 + i64::try_from(number).expect("small") * 1_000),
        actor: (dice.below(4) > 0).then(|| format!("user-{}", dice.below(9))),
        action: ["device.executed", "user.created", "task.created"]
            [usize::try_from(dice.below(3)).expect("small")]
        .into(),
        subject: Some(format!("subject {}", dice.below(1_000))),
        details: json!({ "number": number, "share": 0.1 * f64::from(u32::try_from(number).expect("small")), "nested": [null, "ü"] }),
        client_ip: Some("192.0.2.1".into()),
        request_id: None,
    }
}

#[derive(Clone)]
enum Part {
    Tile(u64, Vec<Hash>),
    Entry(AuditEntry),
    Checkpoint(u64, String),
}

#[derive(Clone)]
struct Log {
    first: u64,
    parts: Vec<Part>,
}

fn chain(drafts: Vec<AuditDraft>) -> Vec<AuditEntry> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    for (seq, draft) in (1..).zip(drafts) {
        let before = entries.last().map_or([0; 32], |entry| entry.hash);
        entries.push(AuditEntry::link(seq, before, draft));
    }
    entries
}

/// A log as the server would have it: `signed` says behind which entries a checkpoint is, with its note.
fn assemble(entries: &[AuditEntry], first: u64, notes: &[(u64, String)]) -> Log {
    let mut parts = Vec::new();
    for (number, entry) in (1_u64..).zip(entries) {
        if number % TILE == 1 {
            let start = usize::try_from(number - 1).expect("small");
            if let Some(tile) = entries.get(start..start + usize::try_from(TILE).expect("small")) {
                parts.push(Part::Tile(number / TILE, tile.iter().map(|entry| entry.hash).collect()));
            }
        }
        if number >= first {
            parts.push(Part::Entry(entry.clone()));
            let behind = notes.iter().filter(|note| note.0 == number);
            parts.extend(behind.map(|(size, note)| Part::Checkpoint(*size, note.clone())));
        }
    }
    Log { first, parts }
}

fn sign(entries: &[AuditEntry], signer: &Signer, sizes: &[u64]) -> Vec<(u64, String)> {
    let mut frontier = Frontier::default();
    let mut notes = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        frontier.push(leaf_hash(&entry.hash));
        if sizes.contains(&number) {
            notes.push((number, signer.sign(number, frontier.root(), entry.draft.at)));
        }
    }
    notes
}

fn examine(log: &Log, trust: Trust) -> Result<Report, Finding> {
    let mut examiner = Examiner::new(trust, log.first)?;
    for part in &log.parts {
        match part {
            Part::Tile(index, hashes) => examiner.tile(*index, hashes.clone())?,
            Part::Entry(entry) => examiner.entry(entry)?,
            Part::Checkpoint(_, note) => examiner.checkpoint(note)?,
        }
    }
    examiner.finish()
}

/// The same by way of a file.
fn by_file(log: &Log, trust: Trust) -> Result<Report, Finding> {
    let mut writer = Writer::start(Vec::new(), "interlock/lab", log.first, &[]).expect("memory");
    for part in &log.parts {
        match part {
            Part::Tile(index, hashes) => writer.tile(*index, hashes),
            Part::Entry(entry) => writer.entry(entry.clone()),
            Part::Checkpoint(_, note) => writer.checkpoint(note),
        }
        .expect("memory");
    }
    match bundle::verify(&*writer.finish().expect("memory"), trust) {
        Ok(report) => Ok(report),
        Err(BundleError::Finding(finding)) => Err(finding),
        Err(other) => panic!("{other}"),
    }
}

/// Between which entries a finding says that the fault is.
fn place(finding: &Finding) -> (u64, u64) {
    match finding {
        Finding::Chain(Broken::Sequence { after, .. })
        | Finding::Checkpoint { after, .. }
        | Finding::Origin { after, .. }
        | Finding::Misplaced { after, .. } => (*after, after + 1),
        // It does not follow from the one before: either of them.
        Finding::Chain(Broken::Link(number)) => (number - 1, *number),
        Finding::Chain(Broken::Content(number)) | Finding::Replaced(number) | Finding::Rewritten(number) => {
            (*number, *number)
        }
        Finding::Root { first, last } => (*first, *last),
        Finding::CutOff { good, noted, .. } => (*good, *noted),
        Finding::Unsigned => (0, u64::MAX),
    }
}

/// What an attacker does, and to which entry.
#[expect(clippy::too_many_lines, reason = "a list of attacks")]
fn tamper(
    kind: u64,
    entries: &[AuditEntry],
    notes: &[(u64, String)],
    first: u64,
    dice: &mut Dice,
) -> Option<(Log, u64, &'static str)> {
    let last = entries.len() as u64;
    let at = |number: u64| usize::try_from(number - 1).expect("small");
    // What is behind the newest checkpoint nobody has signed for.
    let signed = notes.last()?.0;
    let target = first + dice.below(signed - first + 1);
    let mut drafts: Vec<AuditDraft> = entries.iter().map(|entry| entry.draft.clone()).collect();
    let untouched = assemble(entries, first, notes);
    Some(match kind {
        0 => {
            let mut edited = entries.to_vec();
            let draft = &mut edited[at(target)].draft;
            match dice.below(5) {
                0 => draft.actor = Some("eve".into()),
                1 => draft.action.push('x'),
                2 => draft.details = json!({ "nothing": "happened" }),
                3 => draft.at = Timestamp::from_micros(draft.at.micros() + 1),
                _ => draft.request_id = Some(String::new()),
            }
            let mut log = assemble(&edited, first, notes);
            // The tiles are those of the original.
            log.parts.retain(|part| !matches!(part, Part::Tile(..)));
            let tiles = untouched.parts.into_iter().filter(|part| matches!(part, Part::Tile(..)));
            let mut merged = Vec::new();
            let mut tiles = tiles.peekable();
            for part in log.parts {
                if let Part::Entry(entry) = &part {
                    while tiles
                        .next_if(|tile| matches!(tile, Part::Tile(index, _) if index * TILE < entry.seq))
                        .map(|tile| merged.push(tile))
                        .is_some()
                    {}
                }
                merged.push(part);
            }
            (Log { first, parts: merged }, target, "an entry edited")
        }
        1 => {
            let mut edited = entries.to_vec();
            let mut draft = edited[at(target)].draft.clone();
            draft.actor = Some("eve".into());
            edited[at(target)] = AuditEntry::link(target, edited[at(target)].prev_hash, draft);
            (assemble(&edited, first, notes), target, "an entry edited and hashed anew")
        }
        2 => {
            drafts[at(target)].subject = Some("something else".into());
            (
                assemble(&chain(drafts), first, notes),
                target,
                "an entry edited and everything behind it written anew",
            )
        }
        3 => {
            drafts.remove(at(target));
            let shorter = chain(drafts);
            (
                assemble(&shorter, first, notes),
                target,
                "an entry taken out and everything behind it written anew",
            )
        }
        4 => {
            let more = draft(target, dice);
            drafts.insert(at(target), more);
            (
                assemble(&chain(drafts), first, notes),
                target,
                "an entry put in and everything behind it written anew",
            )
        }
        5 => {
            let mut log = untouched;
            let entry = log
                .parts
                .iter()
                .position(|part| matches!(part, Part::Entry(entry) if entry.seq == target))?;
            log.parts.remove(entry);
            (log, target, "an entry taken out")
        }
        6 => {
            let mut log = untouched;
            let places: Vec<usize> =
                (0..log.parts.len()).filter(|at| matches!(log.parts[*at], Part::Entry(_))).collect();
            let one = usize::try_from(dice.below(places.len() as u64 - 1)).expect("small");
            log.parts.swap(places[one], places[one + 1]);
            (log, first + one as u64, "two entries swapped")
        }
        7 => {
            // The newest entries and everything that was signed of them.
            let cut = target.max(first) - 1;
            let older: Vec<_> = notes.iter().filter(|note| note.0 <= cut).cloned().collect();
            (
                assemble(&entries[..usize::try_from(cut).expect("small")], first, &older),
                cut.max(1),
                "the tail cut off, or an old copy put back",
            )
        }
        8 => {
            let cut = (target.max(first)).min(signed - 1);
            (
                assemble(&entries[..usize::try_from(cut).expect("small")], first, &[]),
                cut,
                "the tail cut off and the checkpoints with it",
            )
        }
        9 => {
            let thief =
                Signer::from_pkcs8("interlock/lab", &Signer::generate().expect("a key")).expect("a signer");
            drafts[at(target)].actor = Some("eve".into());
            let forged = chain(drafts);
            let sizes: Vec<u64> = notes.iter().map(|note| note.0).collect();
            (
                assemble(&forged, first, &sign(&forged, &thief, &sizes)),
                target,
                "everything written anew and signed with another key",
            )
        }
        10 => {
            let mut log = untouched;
            let tile = log.parts.iter_mut().find_map(|part| match part {
                Part::Tile(index, hashes) => Some((index, hashes)),
                _ => None,
            })?;
            let within = dice.below(TILE);
            let number = *tile.0 * TILE + within + 1;
            tile.1[usize::try_from(within).expect("small")][0] ^= 1;
            (log, number, "a hash of a tile changed")
        }
        11 => {
            let mut log = untouched;
            let note = log.parts.iter_mut().find_map(|part| match part {
                Part::Checkpoint(size, note) => Some((*size, note)),
                _ => None,
            })?;
            let line = note.1.split('\n').nth(2)?.to_owned();
            let other =
                if line.starts_with('A') { line.replacen('A', "B", 1) } else { format!("A{}", &line[1..]) };
            *note.1 = note.1.replace(&line, &other);
            let place = note.0;
            (log, place, "a checkpoint changed")
        }
        _ => {
            let mut log = untouched;
            log.parts.retain(|part| !matches!(part, Part::Checkpoint(..)));
            (log, last, "every checkpoint taken out")
        }
    })
}

#[test]
#[expect(clippy::print_stderr, reason = "the seed of a failure has to be seen")]
fn every_tampering_is_found_where_it_is_and_nothing_else_is() {
    let told = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let rounds: u64 = told("INTERLOCK_TAMPERINGS").unwrap_or(1_500);
    let chance = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "seed") | 1;
    let seed: u64 = told("INTERLOCK_SEED").unwrap_or(chance);
    eprintln!("seed {seed}, {rounds} rounds");
    let mut dice = Dice(seed);
    let signer = Signer::from_pkcs8("interlock/lab", &Signer::generate().expect("a key")).expect("a signer");
    let mut made = 0;
    while made < rounds {
        let length = 300 + dice.below(500);
        let entries = chain((1..=length).map(|number| draft(number, &mut dice)).collect());
        let mut sizes: Vec<u64> = (0..12).map(|_| dice.entry(length)).collect();
        sizes.push(length - dice.below(20));
        sizes.sort_unstable();
        sizes.dedup();
        let notes = sign(&entries, &signer, &sizes);
        let first = if dice.below(3) == 0 { TILE + 1 } else { 1 };
        let kept = notes.last().expect("one").1.clone();
        let trust = || {
            let mut trust = Trust::in_keys(vec![signer.key().clone()]);
            trust.note(&kept).expect("our own");
            trust
        };
        let untouched = assemble(&entries, first, &notes);
        let report = examine(&untouched, trust()).expect("no false alarm");
        assert_eq!(
            (report.first, report.last, report.signed, report.noted),
            (first, length, *sizes.last().expect("one"), 1)
        );
        assert_eq!(by_file(&untouched, trust()), Ok(report));
        for _ in 0..20 {
            let kind = dice.below(13);
            let Some((log, target, what)) = tamper(kind, &entries, &notes, first, &mut dice) else {
                continue;
            };
            // Without anything that was kept elsewhere, a log whose checkpoints are all gone still has keys to answer to.
            let kept_elsewhere = kind != 12;
            let believed = if kept_elsewhere { trust() } else { Trust::in_keys(vec![signer.key().clone()]) };
            let finding = match if made % 10 == 0 { by_file(&log, believed) } else { examine(&log, believed) }
            {
                Err(finding) => finding,
                Ok(report) => panic!("{what} at {target} of {length} was not found: {report:?}; seed {seed}"),
            };
            let (from, to) = place(&finding);
            assert!(from <= target && target <= to, "{what} at {target} of {length}: {finding}; seed {seed}");
            made += 1;
        }
    }
}

/// Entries and their hashes, as in a tile.
fn some(count: u64) -> (Vec<AuditEntry>, Vec<Hash>) {
    let mut dice = Dice(7);
    let entries = chain((1..=count).map(|number| draft(number, &mut dice)).collect());
    let hashes = entries.iter().map(|entry| entry.hash).collect();
    (entries, hashes)
}

#[test]
fn an_entry_that_was_noted_elsewhere_is_the_one_that_is_there() {
    let (entries, hashes) = some(300);
    let log = assemble(&entries, 1, &[]);
    let noting = |number: u64, hash: Hash| {
        let mut trust = Trust::in_keys(Vec::new());
        trust.note_entry(number, hash);
        trust
    };

    let report = examine(&log, noting(200, hashes[199])).expect("no false alarm");
    assert_eq!((report.noted, report.last), (1, 300));
    assert_eq!(examine(&log, noting(200, hashes[198])), Err(Finding::Rewritten(200)));
    assert_eq!(
        examine(&log, noting(301, hashes[299])),
        Err(Finding::CutOff { good: 0, noted: 301, last: 300 })
    );
}

#[test]
fn a_tile_is_whole_in_its_place_and_followed_by_its_entries() {
    let (entries, hashes) = some(2 * TILE);
    let first: Vec<Hash> = hashes[..256].to_vec();
    let fresh = || Examiner::new(Trust::in_keys(Vec::new()), 1).expect("a start");

    for wrong in [first[..255].to_vec(), hashes[..257].to_vec()] {
        assert_eq!(fresh().tile(0, wrong), Err(Finding::Misplaced { after: 0, what: "tile" }));
    }
    assert_eq!(fresh().tile(1, first.clone()), Err(Finding::Misplaced { after: 0, what: "tile" }));
    let mut twice = fresh();
    twice.tile(0, first.clone()).expect("the first");
    assert_eq!(twice.tile(0, first.clone()), Err(Finding::Misplaced { after: 0, what: "tile" }));

    let mut cut = fresh();
    cut.tile(0, first.clone()).expect("the first");
    for entry in &entries[..10] {
        cut.entry(entry).expect("sound");
    }
    assert_eq!(cut.finish(), Err(Finding::CutOff { good: 0, noted: TILE, last: 10 }));

    // Entries that were too old are gone; what stands for them is enough.
    let mut old = Examiner::new(Trust::in_keys(Vec::new()), TILE + 1).expect("a start");
    old.tile(0, first).expect("the first");
    assert_eq!(
        old.finish().map(|report| (report.first, report.last, report.hash)),
        Ok((TILE + 1, TILE, hashes[255]))
    );
}

#[test]
fn strangers_that_signed_are_counted_and_say_nothing() {
    let (entries, _) = some(40);
    let make = || Signer::from_pkcs8("interlock/lab", &Signer::generate().expect("a key")).expect("a signer");
    let (ours, other) = (make(), make());
    let mut notes = sign(&entries, &other, &[10, 20]);
    notes.extend(sign(&entries, &ours, &[30]));
    let mut trust = Trust::in_keys(vec![ours.key().clone()]);
    assert_eq!(trust.noted(), 0);
    trust.note(&notes[2].1).expect("our own");
    assert_eq!(trust.noted(), 1);

    let report = examine(&assemble(&entries, 1, &notes), trust).expect("no false alarm");

    assert_eq!((report.strangers, report.checkpoints, report.signed), (2, 1, 30));
}

#[test]
fn a_file_that_is_none_is_refused_with_the_line() {
    let refused =
        |text: &str| bundle::verify(text.as_bytes(), Trust::default()).expect_err("no log").to_string();
    let head = r#"{"type":"log","version":1,"origin":"o","first":1,"keys":[]}"#;

    assert!(refused("").contains("empty"));
    assert!(refused("nonsense\n").starts_with("line 1: not a line of an audit log"));
    assert!(
        refused(&format!("{head}\n{{\"type\":\"tile\"")).starts_with("line 2: the file was cut off here")
    );
    assert!(refused(&format!("{head}\n{head}\n")).starts_with("line 2: the log begins a second time"));
    assert!(
        refused("{\"type\":\"checkpoint\",\"note\":\"\"}\n").starts_with("line 1: the first line has to say")
    );
    assert!(refused(&head.replace("\"version\":1", "\"version\":2")).contains("cut off"));
    assert!(refused(&format!("{}\n", head.replace("\"version\":1", "\"version\":2"))).contains("version 2"));
    assert!(
        refused(&format!("{}\n", head.replace("\"first\":1", "\"first\":0"))).contains("moved or taken out")
    );
    assert!(
        refused(&format!(
            "{head}\n{{\"type\":\"tile\",\"index\":18446744073709551615,\"hashes\":\"AA==\"}}\n"
        ))
        .contains("32 bytes")
    );
    assert!(refused(&format!("{}\n", "x".repeat(5 << 20))).contains("longer than 4 MiB"));
}
