//! Fuzzing of decoders on a stable compiler: inputs are mutated from a corpus and a seed, without instrumentation of the code.
//!
//! A test names its decoder and gives it valid inputs ([`Fuzz::seed`]); files in `tests/corpus/NAME` are further ones. [`Fuzz::run`]
//! replays all of them, then a bounded number of mutations. What the decoder answers steers the search in place of coverage:
//! an input with an answer of a new shape is kept and mutated further.
//!
//! A failure is a panic of the decoder, or more memory than the allowance for the input ([`allocations`]). The input is written
//! to the corpus, so that it is replayed from then on. An input on which a decoder runs for a minute is written too, and ends
//! the process.
//!
//! | variable | effect |
//! |---|---|
//! | `CHRONICLE_FUZZ_SECONDS` | mutates for so long for each decoder, and adds inputs with new answers to the corpus |
//! | `CHRONICLE_FUZZ_SEED` | another seed than 0 |

pub mod allocations;
mod mutation;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub use allocations::CountingAllocator;
pub use mutation::Chance;

use mutation::mutate;

/// Mutations of a decoder in an ordinary run, and the time after which it stops anyway.
const MUTATIONS: usize = 4000;
const SHORT: Duration = Duration::from_secs(3);
/// Inputs kept in memory.
const POOL_MAX: usize = 2000;
/// A long run adds inputs of at most this size to the corpus, until it has this many files.
const KEPT_BYTES: usize = 1024;
const KEPT_FILES: usize = 12;
/// Longest time for one input: far above what the slowest machine needs.
const HUNG: Duration = Duration::from_secs(60);

/// How to fuzz one decoder.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    repair: Option<fn(&mut [u8])>,
    times: usize,
    plus: usize,
    mutations: usize,
}

impl Fuzz {
    /// A decoder, by the name of its folder in `tests/corpus`.
    pub fn new(name: &'static str) -> Self {
        Self { name, seeds: Vec::new(), repair: None, times: 16, plus: 64 << 10, mutations: MUTATIONS }
    }

    /// Adds a valid input.
    #[must_use]
    pub fn seed(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(bytes.into());
        self
    }

    /// Makes every second mutated input pass checksums, so that what is behind them is reached.
    #[must_use]
    pub fn repair(mut self, repair: fn(&mut [u8])) -> Self {
        self.repair = Some(repair);
        self
    }

    /// Lets the decoder hold `times` the bytes of its input, and `plus` bytes. Without it 16 times and 64 KiB.
    #[must_use]
    pub fn allowance(mut self, times: usize, plus: usize) -> Self {
        (self.times, self.plus) = (times, plus);
        self
    }

    /// Number of mutations of an ordinary run, for slow decoders.
    #[must_use]
    pub fn mutations(mut self, mutations: usize) -> Self {
        self.mutations = mutations;
        self
    }

    /// Gives the decoder the corpus and mutations of it. `decode` answers how it went: the error, or something about the value;
    /// numbers in it do not count as something new.
    ///
    /// # Panics
    /// The decoder panics or allocates too much. The message names the file with the input.
    pub fn run(self, mut decode: impl FnMut(&[u8]) -> String) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(self.name);
        let seconds: Option<u64> = variable("CHRONICLE_FUZZ_SECONDS");
        let seed = variable("CHRONICLE_FUZZ_SEED").unwrap_or(0);
        let mut pool = self.seeds.clone();
        pool.extend(corpus(&folder));
        assert!(!pool.is_empty(), "{}: no input", self.name);
        let mut seen = HashSet::new();
        let watch = Watch::start(folder.clone());
        let mut one = |input: &[u8]| {
            watch.begins(input);
            let (answer, held) = allocations::peak(|| catch_unwind(AssertUnwindSafe(|| decode(input))));
            let failure = match &answer {
                Err(_) => Some("panics".to_owned()),
                Ok(_) if held > self.times * input.len() + self.plus => {
                    Some(format!("holds {held} bytes for an input of {}", input.len()))
                }
                Ok(_) => None,
            };
            if let Some(failure) = failure {
                let file = keep(&folder, "crash", input);
                panic!("{} {failure}: see {} (seed {seed})", self.name, file.display());
            }
            seen.insert(shape(&answer.unwrap_or_default()))
        };
        for input in &pool {
            one(input);
        }
        let mut chance = Chance::new(seed);
        let until = Instant::now() + seconds.map_or(SHORT, Duration::from_secs);
        let mut files = pool.len() - self.seeds.len();
        for number in 0.. {
            if Instant::now() > until || (seconds.is_none() && number == self.mutations) {
                break;
            }
            let mut input = chance.pick(&pool).clone();
            let other = chance.pick(&pool).clone();
            mutate(&mut input, &other, &mut chance);
            if let Some(repair) = self.repair
                && number % 2 == 0
            {
                repair(&mut input);
            }
            if one(&input) && pool.len() < POOL_MAX {
                if seconds.is_some() && files < KEPT_FILES && input.len() <= KEPT_BYTES {
                    keep(&folder, "found", &input);
                    files += 1;
                }
                pool.push(input);
            }
        }
        watch.end();
        println!("{}: {} answers", self.name, seen.len());
    }
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}: must be a number")))
}

/// The files of a corpus, in the order of their names.
fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a file of the corpus can be read")).collect()
}

/// Writes an input to the corpus.
fn keep(folder: &Path, kind: &str, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let file = folder.join(format!("{kind}-{:016x}", hasher.finish()));
    fs::create_dir_all(folder).and_then(|()| fs::write(&file, input)).expect("the corpus can be written to");
    file
}

/// An answer without what differs from input to input: words with digits, and quoted text.
fn shape(answer: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for plain in answer.split(['"', '\'', '`']).step_by(2) {
        for word in plain.split(|c: char| !c.is_alphanumeric()) {
            match word.contains(|c: char| c.is_ascii_digit()) {
                true => "#".hash(&mut hasher),
                false => word.hash(&mut hasher),
            }
        }
    }
    hasher.finish()
}

/// Ends the process when one input takes for ever: no test can stop the thread that decodes it.
struct Watch {
    inputs: std::sync::mpsc::Sender<Vec<u8>>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn start(folder: PathBuf) -> Self {
        let (inputs, begun) = channel::<Vec<u8>>();
        let thread = std::thread::spawn(move || {
            let Ok(mut last) = begun.recv() else { return };
            loop {
                match begun.recv_timeout(HUNG) {
                    Ok(next) => last = next,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("{HUNG:?} for one input: see {}", keep(&folder, "hangs", &last).display());
                        std::process::abort();
                    }
                }
            }
        });
        Self { inputs, thread }
    }

    fn begins(&self, input: &[u8]) {
        // Fails only after the thread has ended, which it does not.
        let _ = self.inputs.send(input.to_vec());
    }

    fn end(self) {
        drop(self.inputs);
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_one_shape_whatever_their_numbers_and_texts() {
        assert_eq!(shape("offset 7: \"a\" must be 12"), shape("offset 3333: \"b c\" must be 0xfe1"));
        assert_ne!(shape("offset 7"), shape("offset x"));
    }

    #[test]
    fn a_panic_behind_a_length_is_found_and_its_input_kept() {
        let name = "of-the-fuzzer-itself";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
        let found = catch_unwind(|| {
            Fuzz::new(name).seed([3, 0, 0, 0, 1, 2, 3]).mutations(100_000).run(|bytes| {
                let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return "short".into() };
                format!("{}", rest[..u32::from_le_bytes(*length) as usize].len())
            });
        });
        let kept = corpus(&folder);
        fs::remove_dir_all(&folder).expect("the input was kept");
        assert!(found.is_err() && kept.len() == 1);
    }

    #[test]
    fn too_much_memory_is_found() {
        let name = "of-the-guard-itself";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
        let found = catch_unwind(|| {
            Fuzz::new(name).seed([3, 0, 0, 0]).run(|bytes| {
                let Some(length) = bytes.first_chunk::<4>() else { return "short".into() };
                format!("{}", Vec::<u8>::with_capacity((u32::from_le_bytes(*length) as usize).min(1 << 22)).len())
            });
        });
        fs::remove_dir_all(&folder).expect("the input was kept");
        assert!(found.is_err());
    }
}
