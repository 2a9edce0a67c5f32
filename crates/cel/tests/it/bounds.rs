//! Whatever is fed to it, the engine answers: no panic, no overflow of the stack, no hang.

use keelson_cel::{Environment, Type, Value, Variables, Version, display_issues};

fn environment() -> Environment {
    Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("x", Type::Int)
        .variable("l", Type::list(Type::Int))
        .build()
}

fn message(source: &str) -> String {
    environment()
        .compile(source)
        .map_or_else(|issues| display_issues(&issues), |_| String::new())
}

#[test]
fn nesting_is_bounded() {
    let nested = |open: &str, n: usize, close: &str| open.repeat(n) + "x" + &close.repeat(n);
    assert_eq!(message(&nested("(", 249, ")")), "");
    assert_eq!(
        message(&nested("(", 250, ")")),
        "ERROR: <input>:-1:0: expression recursion limit exceeded: 250"
    );
    assert_eq!(
        message(&nested("[", 100_000 / 2 - 1, "]")),
        "ERROR: <input>:-1:0: expression recursion limit exceeded: 250"
    );
    assert_eq!(message(&("x".to_owned() + &"+x".repeat(200))), "");
    assert!(message(&("x".to_owned() + &"+x".repeat(300))).contains("recursion"));
    assert!(message(&("x".to_owned() + &".a".repeat(300))).contains("recursion"));
    // Chains of logical operators are balanced, so that they may be long.
    assert_eq!(
        message(&("true".to_owned() + &" && true".repeat(10_000))),
        ""
    );
    assert_eq!(
        message(&"x".repeat(100_001)),
        "ERROR: <input>:-1:0: expression code point size exceeds limit: size: 100001, limit 100000"
    );
}

#[test]
fn deep_trees_evaluate_on_a_small_stack() {
    let environment = environment();
    let deep = "[x].map(a, ".repeat(120) + "x" + &")".repeat(120);
    let deeper = "[".repeat(240) + "x" + &"]".repeat(240);
    let chain = "x == 1 ? 1 : ".repeat(240) + "2";
    for source in [deep, deeper, chain] {
        let expression = environment
            .compile(&source)
            .map_err(|i| display_issues(&i))
            .unwrap();
        let variables = Variables::new().with("x", Value::Int(5));
        let evaluation = expression.eval(&variables, 1_000_000);
        let value = evaluation.result.unwrap();
        value.to_json().unwrap();
        assert!(value.equals(&value).unwrap());
    }
}

#[test]
fn the_cost_limit_ends_an_evaluation() {
    let environment = environment();
    let source = "l.all(a, l.all(b, l.all(c, l.exists(d, a + b + c + d > -1))))";
    let expression = environment.compile(source).unwrap();
    let variables = Variables::new().with("l", Value::list(vec![Value::Int(1); 1000]));
    let evaluation = expression.eval(&variables, 100_000);
    assert_eq!(
        evaluation.result.unwrap_err().to_string(),
        "operation cancelled: actual cost limit exceeded"
    );
    assert!(evaluation.cost < 101_000);
}

#[test]
fn trees_that_outgrow_their_texts_are_refused() {
    let mut source = "[1]".to_owned();
    for i in 0..40 {
        source = format!("optional.of({source}).optMap(v{i}, v{i}).value()");
    }
    assert_eq!(
        message(&source),
        "ERROR: <input>:-1:0: expression is too complex"
    );
}

#[test]
fn values_that_share_their_parts_stay_bounded() {
    let mut source = "v39".to_owned();
    for i in (0..40).rev() {
        let before = if i == 0 {
            "[1]".to_owned()
        } else {
            format!("[v{0}, v{0}]", i - 1)
        };
        source = format!("optional.of({before}).optMap(v{i}, {source}).value()");
    }
    let found = message(&source);
    assert!(
        found.contains("type is too complex") || found.is_empty(),
        "{found}"
    );
    let Ok(expression) = environment().compile(&format!("{source} == {source}")) else {
        return;
    };
    let evaluation = expression.eval(&Variables::new(), 1_000_000);
    assert!(evaluation.result.is_err());
}
