//! Mutated commands and states of the controller: they come from other nodes and from checkpoints.

use chronicle_fuzz::Fuzz;

use super::{ControllerCommand, ControllerState};

const COMMANDS: &[&str] = &[
    r#"{"command":"init-cluster","cluster_id":"00000000-0000-0000-0000-000000000007","nodes":[]}"#,
    r#"{"command":"join","uuid":"00000000-0000-0000-0000-000000000001","name":"n1","address":"n1:7400","zone":"","version":"0.1.0","boot":1,"now_ms":5,"cluster_id":"00000000-0000-0000-0000-000000000000"}"#,
];

#[test]
fn mutated_commands_are_applied_or_refused() {
    let mut state = ControllerState::default();
    for command in COMMANDS {
        state.apply(serde_json::from_str(command).unwrap());
    }
    let saved = serde_json::to_vec(&state).unwrap();
    let mut fuzz = Fuzz::new("controller-commands").seed(saved.clone());
    for command in COMMANDS {
        fuzz = fuzz.seed(*command);
    }
    fuzz.allowance(64, 256 << 10).run(|bytes| {
        let restored = serde_json::from_slice::<ControllerState>(bytes).map(|_| ()).map_err(|error| error.to_string());
        let applied = serde_json::from_slice::<ControllerCommand>(bytes).map(|command| {
            let mut state: ControllerState = serde_json::from_slice(&saved).unwrap();
            format!("{:?}", std::mem::discriminant(&state.apply(command)))
        });
        format!("{restored:?} {:?}", applied.map_err(|error| error.to_string()))
    });
}
