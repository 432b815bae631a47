//! Small defects that tests switch on to see that they would find them.
//!
//! `mutant!("name")` is the constant `false`, unless everything was compiled with `--cfg chronicle_mutants`, which only the
//! simulation's build does. There it is true in a process whose environment names that mutant in `CHRONICLE_MUTANT`.
//! `tests/simulation/tests/mutants.rs` lists the mutants, runs each and fails when one survives.
//!
//! Stands below every other file of the crate and names none.

/// Whether this process runs with the mutant of this name. Constant `false` in every product build.
#[cfg(not(chronicle_mutants))]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        false
    };
}

/// Whether this process runs with the mutant of this name. Constant `false` in every product build.
#[cfg(chronicle_mutants)]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::is_mutant($name)
    };
}

/// Whether `CHRONICLE_MUTANT` is `name`. Read once.
#[cfg(chronicle_mutants)]
pub fn is_mutant(name: &str) -> bool {
    static SWITCHED_ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    SWITCHED_ON.get_or_init(|| std::env::var("CHRONICLE_MUTANT").ok()).as_deref() == Some(name)
}
