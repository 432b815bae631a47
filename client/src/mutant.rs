//! Small defects that tests switch on to see that they would find them, as `chronicle_log::mutant!`, which the client does
//! not depend on. Names no other file of the crate.

/// Whether this process runs with the mutant of this name: constant `false`, unless it was compiled with
/// `--cfg chronicle_mutants`, which only the simulation's build does.
macro_rules! mutant {
    ($name:literal) => {
        cfg!(chronicle_mutants) && std::env::var("CHRONICLE_MUTANT").is_ok_and(|mutant| mutant == $name)
    };
}

pub(crate) use mutant;
