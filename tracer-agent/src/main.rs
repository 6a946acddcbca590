//! temporary
fn main() {
    let options = tracer_agent::probes::Options { ring_bytes: 16 << 20, max_connections: 32768, agent_tgid: std::process::id(), policy_active: false, policy_default: 0, ports_active: false };
    match tracer_agent::probes::Kernel::verify(&options) {
        Ok(list) => for v in list { println!("{:24} {:>8?} {:?}", v.name, v.instructions, v.elapsed) },
        Err(e) => { let mut s: Option<&dyn std::error::Error> = Some(&e); while let Some(x) = s { println!("{x}"); s = x.source(); } }
    }
}
