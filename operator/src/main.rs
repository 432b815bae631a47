fn main() { println!("{}", serde_yaml::to_string(&chronicle_operator::api::crds()).unwrap()); }
