//! Runs seeds, each in a process of its own: what one leaves behind in a process (tables of libraries, counters) would change
//! the next.
//!
//! A test program that calls [`here_if_asked`] at the start of its test `one_seed` may call [`Runs::run`].

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::{Detail, run};

/// Set for the processes that are started: `outcomes` or `everything`, what goes into the trace.
const TRACE: &str = "CHRONICLE_SIMULATION_TRACE";
/// What a process that was started says of its seed begins with this.
const REPORT: &str = "report: ";
/// A process that takes longer than this hangs.
const WALL_MAX: Duration = Duration::from_secs(300);

/// A number in an environment variable.
///
/// # Panics
/// It is none.
pub fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}: must be a number")))
}

/// Runs the seed that `CHRONICLE_SIMULATION_SEED` names in this process, if it names one.
///
/// # Panics
/// The simulation fails.
pub fn here_if_asked() {
    let Some(seed) = variable("CHRONICLE_SIMULATION_SEED") else { return };
    let detail = match std::env::var(TRACE).as_deref() {
        Ok("outcomes") => Detail::Outcomes,
        Ok("everything") => Detail::Everything,
        _ => Detail::Print(std::env::var("CHRONICLE_SIMULATION_LOG").unwrap_or_else(|_| "info".into())),
    };
    match run(seed, detail) {
        Ok(report) => eprintln!("{REPORT}{report}"),
        Err(error) => panic!("{error:#}"),
    }
}

/// A seed, and with what it runs.
#[derive(Debug, Clone)]
pub struct Job {
    /// The seed.
    pub seed: u64,
    /// The mutant that is switched on; `None`: the code as it is.
    pub mutant: Option<&'static str>,
    /// Kinds of faults and how often each is drawn (`CHRONICLE_SIMULATION_PLAN`); empty: all.
    pub plan: &'static str,
    /// Every event goes into the hash of the trace, not only outcomes.
    pub everything: bool,
}

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What was counted; or why the seed failed.
    pub result: Result<BTreeMap<String, u64>, String>,
    /// How long it took.
    pub took: Duration,
}

/// Runs jobs, as many at a time as there are processors. `next` gives the next job of a number, or none; `ended` takes what became
/// of it. Both are called by one thread at a time.
pub fn run_jobs<J: Send>(next: impl FnMut() -> Option<(J, Job)> + Send, ended: impl FnMut(J, &Job, Ended) + Send) {
    let (next, ended) = (Mutex::new(next), Mutex::new(ended));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = (next.lock().expect("no worker panicked"))();
                    let Some((name, job)) = job else { return };
                    let end = in_process(&job);
                    (ended.lock().expect("no worker panicked"))(name, &job, end);
                }
            });
        }
    });
}

/// Runs jobs and returns what became of each, in their order.
pub fn run_all(jobs: &[Job]) -> Vec<Ended> {
    let mut results = BTreeMap::new();
    let mut jobs = jobs.iter().cloned().enumerate();
    run_jobs(
        || jobs.next(),
        |number, _, ended| {
            results.insert(number, ended);
        },
    );
    results.into_values().collect()
}

fn in_process(job: &Job) -> Ended {
    let began = Instant::now();
    let mut command = Command::new(std::env::current_exe().expect("the test knows its program"));
    command
        .args(["one_seed", "--exact", "--nocapture"])
        .env("CHRONICLE_SIMULATION_SEED", job.seed.to_string())
        .env(TRACE, if job.everything { "everything" } else { "outcomes" })
        .env("CHRONICLE_MUTANT", job.mutant.unwrap_or_default());
    if !job.plan.is_empty() {
        command.env("CHRONICLE_SIMULATION_PLAN", job.plan);
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the test's program starts");
    let mut stderr = child.stderr.take().expect("it is piped");
    let reading = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = loop {
        if let Some(status) = child.try_wait().expect("a process that was started ends") {
            break status;
        }
        if began.elapsed() > WALL_MAX {
            // Its time does not go on.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = reading.join().expect("reading does not panic");
    let report = said.lines().find_map(|line| line.strip_prefix(REPORT));
    let result = match report {
        Some(report) if status.success() => Ok(counts(report)),
        _ => Err(why(job.seed, &said)),
    };
    Ended { result, took: began.elapsed() }
}

fn counts(report: &str) -> BTreeMap<String, u64> {
    let pairs = report.split(';').filter_map(|pair| pair.split_once('='));
    pairs.filter_map(|(kind, count)| Some((kind.to_owned(), count.parse().ok()?))).collect()
}

/// The lines that a process that failed wrote about it.
fn why(seed: u64, said: &str) -> String {
    let lines = said.lines().filter(|line| line.contains("seed") && !line.starts_with("thread")).take(2);
    let text = lines.collect::<Vec<_>>().join(" ");
    if text.is_empty() { format!("seed {seed}: {said}") } else { text }
}
