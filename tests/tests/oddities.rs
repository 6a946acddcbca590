//! The table of odd but valid programs: exactly the right spans for each, nothing else. One agent
//! sees them all; requests are told apart by their markers.

use tracer_tests::agent::Start;
use tracer_tests::finish::finish_but_for;
use tracer_tests::oddities::{SCENARIOS, mismatches, play};
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{self, Session, unique};

/// Without an agent: every scenario's own programs do what they should.
#[test]
fn the_scenarios_play() {
    // Not beside a test with an agent, which would see this traffic too.
    let _lock = session::lock();
    let mut wrong = Vec::new();
    for scenario in SCENARIOS {
        let start = std::time::Instant::now();
        let result = play(scenario, &unique());
        println!("{:>6} ms {}", start.elapsed().as_millis(), scenario.name);
        match result {
            Ok(played) if played.server_pids.is_empty() => {
                wrong.push(format!("{}: nobody served", scenario.name))
            }
            Ok(played) if played.server_pids.contains(&played.client_pid) => {
                wrong.push(format!(
                    "{}: the client served itself: {played:?}",
                    scenario.name
                ));
            }
            Ok(_) => {}
            Err(reason) => wrong.push(format!("{}: {reason}", scenario.name)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_scenario_gives_its_spans() {
    let Some(session) = Session::begin("oddities") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let played: Vec<_> = SCENARIOS
        .iter()
        .enumerate()
        .map(|(number, scenario)| {
            // The number is closed off, so that no marker is the beginning of another.
            let run = format!("{}s{number}e", session.run);
            play(scenario, &run).unwrap_or_else(|reason| panic!("{}: {reason}", scenario.name))
        })
        .collect();
    let count = SCENARIOS
        .iter()
        .map(|scenario| 2 * scenario.wants.len())
        .sum();
    // One call has more vectors than are looked at: what is behind them is lost, and told.
    let (spans, _) = finish_but_for(agent, &receiver, &session.run, count, &["bytes"]);
    let all = SCENARIOS.iter().zip(&played);
    let wrong: Vec<String> = all
        .flat_map(|(scenario, played)| mismatches(scenario, played, &spans))
        .collect();
    assert!(wrong.is_empty(), "{} mismatches: {wrong:#?}", wrong.len());
}
