//! Disks that fail, hang, are slow or full, and clocks that jump, for one process and without root: what [`FaultyMachine::wrap`] starts
//! asks a supervisor before each of its system calls that changes a file of its data folder (`faults/supervise.c`), and takes its
//! wall clock from a library that shifts it (`faults/clock.c`). Both are compiled with `cc` when they are first needed.
//!
//! The supervisor can also record all of these calls, with their data ([`FaultyMachine::recorded`]): see [`crate::powerloss`].
//!
//! Invariant: faults end with [`FaultyMachine::heal`]; a restart of the process alone does not end them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use tempfile::TempDir;

const SUPERVISE: &str = include_str!("faults/supervise.c");
const CLOCK: &str = include_str!("faults/clock.c");

/// The compiled programs; removed by the system with its other temporary files.
struct Programs {
    supervise: PathBuf,
    clock: PathBuf,
}

fn programs() -> Result<&'static Programs> {
    static PROGRAMS: LazyLock<Result<Programs, String>> =
        LazyLock::new(|| Programs::compile().map_err(|error| format!("{error:#}")));
    match &*PROGRAMS {
        Ok(programs) => Ok(programs),
        Err(error) => bail!("{error}"),
    }
}

impl Programs {
    /// Compiles both into a folder that is named after the sources, so that other test programs find them there.
    fn compile() -> Result<Self> {
        let hash = blake3::hash(format!("{SUPERVISE}{CLOCK}").as_bytes()).to_hex();
        let dir = std::env::temp_dir().join(format!("chronicle-faults-{}", &hash[..16]));
        let programs = Self { supervise: dir.join("supervise"), clock: dir.join("clock.so") };
        std::fs::create_dir_all(&dir)?;
        for (source, flags, target) in
            [(SUPERVISE, &["-O2"][..], &programs.supervise), (CLOCK, &["-O2", "-shared", "-fPIC"], &programs.clock)]
        {
            if target.exists() {
                continue;
            }
            let scratch = tempfile::tempdir_in(&dir)?;
            let (file, made) = (scratch.path().join("source.c"), scratch.path().join("made"));
            std::fs::write(&file, source)?;
            let output =
                Command::new("cc").args(flags).arg("-o").args([&made, &file]).output().context("starting cc")?;
            ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
            // Whole or not at all: another test program may be doing the same.
            std::fs::rename(made, target)?;
        }
        Ok(programs)
    }
}

/// The disk and the clock of one process, as its tests wish.
#[derive(Debug)]
pub struct FaultyMachine {
    dir: TempDir,
    control: File,
    clock: File,
    records: bool,
}

/// Fields of `struct control` in `supervise.c`, by position.
const FLUSH_ERROR: u64 = 0;
const FLUSH_DELAY: u64 = 4;
const FLUSH_HANGS: u64 = 8;
const WRITE_ERROR: u64 = 12;
const WRITE_ONE_IN: u64 = 16;
const CONTROL_BYTES: u64 = 4096;

impl FaultyMachine {
    /// A machine without faults. With `records`, every change of a file is recorded.
    ///
    /// # Errors
    /// `cc` fails, or temporary files cannot be made.
    pub fn new(records: bool) -> Result<Self> {
        programs()?;
        let dir = tempfile::tempdir()?;
        let open = |name: &str, bytes: u64| -> Result<File> {
            let path = dir.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            file.set_len(bytes)?;
            Ok(file)
        };
        let (control, clock) = (open("control", CONTROL_BYTES)?, open("clock", 8)?);
        Ok(Self { dir, control, clock, records })
    }

    /// A command that runs `command` on this machine, with its data in `data_dir`. The process keeps its id.
    ///
    /// # Errors
    /// The folder has no parent.
    pub fn wrap(&self, command: &Command, data_dir: &Path) -> Result<Command> {
        let programs = programs()?;
        // As the kernel names open files.
        let parent = data_dir.parent().context("the data folder has no parent")?.canonicalize()?;
        let folder = parent.join(data_dir.file_name().context("the data folder has no name")?);
        let mut wrapped = Command::new(&programs.supervise);
        wrapped.arg(self.dir.path().join("control")).arg(folder);
        wrapped.arg(if self.records { self.dir.path().join("record") } else { "-".into() });
        wrapped.arg(command.get_program()).args(command.get_args());
        wrapped.env_clear().stdin(std::process::Stdio::null());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        wrapped.env("LD_PRELOAD", &programs.clock).env("CLOCK_OFFSET", self.dir.path().join("clock"));
        Ok(wrapped)
    }

    /// The recorded calls of all processes so far, as `supervise.c` writes them.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn recorded(&self) -> Result<Vec<u8>> {
        ensure!(self.records, "nothing was recorded");
        Ok(std::fs::read(self.dir.path().join("record"))?)
    }

    /// Every flush fails with an input/output error, and does not take place.
    ///
    /// # Errors
    /// As the methods below: the control file cannot be written.
    pub fn fail_flushes(&self) -> Result<()> {
        self.set(FLUSH_ERROR, Errno::IO.raw_os_error().unsigned_abs())
    }

    /// Every flush begins only after this long.
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn delay_flushes(&self, delay: Duration) -> Result<()> {
        self.set(FLUSH_DELAY, u32::try_from(delay.as_millis())?)
    }

    /// Flushes do not return, until [`FaultyMachine::heal`].
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn hang_flushes(&self) -> Result<()> {
        self.set(FLUSH_HANGS, 1)
    }

    /// No file grows and none is made: the disk is full.
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn fill_disk(&self) -> Result<()> {
        self.set(WRITE_ERROR, Errno::NOSPC.raw_os_error().unsigned_abs())
    }

    /// One in `one_in` writes that make a file longer fails with an input/output error.
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn fail_writes(&self, one_in: u32) -> Result<()> {
        self.set(WRITE_ONE_IN, one_in)?;
        self.set(WRITE_ERROR, Errno::IO.raw_os_error().unsigned_abs())
    }

    /// The wall clock is ahead by so many milliseconds, or behind.
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn shift_clock(&self, millis: i64) -> Result<()> {
        Ok(self.clock.write_all_at(&millis.to_ne_bytes(), 0)?)
    }

    /// Ends every fault. Flushes that hang take place, calls that failed are not repeated.
    ///
    /// # Errors
    /// As [`FaultyMachine::fail_flushes`].
    pub fn heal(&self) -> Result<()> {
        for field in [FLUSH_ERROR, FLUSH_DELAY, WRITE_ERROR, WRITE_ONE_IN, FLUSH_HANGS] {
            self.set(field, 0)?;
        }
        self.shift_clock(0)
    }

    fn set(&self, field: u64, value: u32) -> Result<()> {
        Ok(self.control.write_all_at(&value.to_ne_bytes(), field)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(machine: &FaultyMachine, folder: &Path, script: &str) -> Result<std::process::Output> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("PATH", std::env::var_os("PATH").context("no PATH")?);
        Ok(machine.wrap(&command, folder)?.output()?)
    }

    #[test]
    fn flushes_and_writes_fail_in_the_folder_and_nowhere_else() {
        let machine = FaultyMachine::new(false).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (data, other) = (folder.path().join("data"), folder.path().join("other"));
        std::fs::create_dir_all(&data).unwrap();
        let run = |script: &str| {
            let output = shell(&machine, &data, &script.replace("DATA", data.to_str().unwrap())).unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert!(run("echo a > DATA/a && sync DATA/a").0);
        machine.fail_flushes().unwrap();
        let (success, error) = run("sync DATA/a");
        assert!(!success && error.contains("Input/output error"), "{error}");
        assert!(run(&format!("echo b > {0} && sync {0}", other.display())).0);
        machine.heal().unwrap();
        machine.fill_disk().unwrap();
        let (success, error) = run("mkdir DATA/new");
        assert!(!success && error.contains("No space left"), "{error}");
        machine.heal().unwrap();
        assert!(run("mkdir DATA/new && sync DATA/a").0);
    }

    #[test]
    fn the_wall_clock_of_the_process_is_shifted() {
        let machine = FaultyMachine::new(false).unwrap();
        let folder = tempfile::tempdir().unwrap();
        machine.shift_clock(-400 * 86_400_000).unwrap();
        let year = || -> i32 {
            let output = shell(&machine, folder.path(), "date +%Y").unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
        };
        let shifted = year();
        machine.heal().unwrap();
        assert!(shifted < year());
    }
}
