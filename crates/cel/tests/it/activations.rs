//! What an activation and an environment give to an expression.

use keelson_cel::{
    Activation, Attributes, Authorizer, Decision, Environment, EvalError, Type, TypeProvider,
    Value, ValueResult, Variables, Version, display_issues,
};
use std::cell::Cell;
use std::sync::{Arc, Mutex};

/// Variables of a policy: computed when asked for, and then only.
struct Composed<'e> {
    asked: &'e Cell<usize>,
}

impl<'v> Activation<'v> for Composed<'_> {
    fn resolve(&self, name: &str) -> Option<ValueResult<'v>> {
        (name == "variables").then(|| Ok(Value::Lazy("kubernetes.variables".into())))
    }

    fn resolve_field(&self, object: &str, field: &str) -> Option<ValueResult<'v>> {
        assert_eq!(object, "kubernetes.variables");
        self.asked.set(self.asked.get() + 1);
        match field {
            "n" => Some(Ok(Value::Int(7))),
            "bad" => Some(Err(EvalError::new("composited variable \"bad\" fails"))),
            _ => None,
        }
    }
}

struct VariableTypes;

impl TypeProvider for VariableTypes {
    fn has_type(&self, name: &str) -> bool {
        name == "kubernetes.variables"
    }

    fn field(&self, _: &str, field: &str) -> Option<Type> {
        match field {
            "n" => Some(Type::Int),
            "bad" => Some(Type::Bool),
            _ => None,
        }
    }
}

#[test]
fn lazy_fields_are_asked_for_when_needed() {
    let environment = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("variables", Type::object("kubernetes.variables"))
        .provider(Arc::new(VariableTypes))
        .build();
    let asked = Cell::new(0);
    let activation = Composed { asked: &asked };
    let run = |source: &str| {
        let expression = environment.compile(source).unwrap();
        expression.eval(&activation, 1_000).result
    };
    assert!(run("true || variables.bad").unwrap().as_bool().unwrap());
    assert_eq!(asked.get(), 0);
    assert!(run("variables.n == 7").unwrap().as_bool().unwrap());
    assert_eq!(asked.get(), 1);
    assert!(
        run("variables.bad || variables.n > 6")
            .unwrap()
            .as_bool()
            .unwrap()
    );
    let error = run("variables.bad").unwrap_err();
    assert_eq!(error.to_string(), "composited variable \"bad\" fails");
    let issues = environment.compile("variables.z").unwrap_err();
    assert_eq!(
        display_issues(&issues),
        "ERROR: <input>:1:10: undefined field 'z'\n | variables.z\n | .........^"
    );
}

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Attributes>>);

impl Authorizer for Recorder {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        self.0.lock().unwrap().push(attributes.clone());
        Decision {
            allowed: attributes.verb == "get",
            reason: "because".to_owned(),
            error: attributes.path.as_ref().map(|_| "no paths".to_owned()),
        }
    }
}

#[test]
fn checks_reach_the_authorizer() {
    let environment = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable(
            "authorizer",
            Type::object("kubernetes.authorization.Authorizer"),
        )
        .build();
    let recorder = Arc::new(Recorder::default());
    let variables = Variables::new().with("authorizer", Value::authorizer(recorder.clone()));
    let run = |source: &str| {
        let expression = environment.compile(source).unwrap();
        expression.eval(&variables, 1_000_000)
    };
    let full = "authorizer.serviceAccount('ns', 'sa').group('apps').resource('deployments')\
        .subresource('status').namespace('n').name('x').fieldSelector('a=b')\
        .labelSelector('c').check('get').allowed()";
    let evaluation = run(full);
    assert!(evaluation.result.unwrap().as_bool().unwrap());
    // The check, the variable, seven nominal steps, and the two selectors by their length.
    let selectors = (10 + 1 + 100) + (10 + 1 + 50);
    assert_eq!(evaluation.cost, 350_000 + 1 + 7 + selectors);
    let expected = Attributes {
        service_account: Some(("ns".to_owned(), "sa".to_owned())),
        verb: "get".to_owned(),
        path: None,
        group: "apps".to_owned(),
        resource: "deployments".to_owned(),
        subresource: "status".to_owned(),
        namespace: "n".to_owned(),
        name: "x".to_owned(),
        field_selector: Some("a=b".to_owned()),
        label_selector: Some("c".to_owned()),
    };
    assert_eq!(recorder.0.lock().unwrap().pop(), Some(expected));
    let error = run("authorizer.path('/healthz').check('put').error()");
    assert_eq!(error.result.unwrap().as_str(), Some("no paths"));
    let empty = run("authorizer.path(' ').check('put').allowed()");
    assert_eq!(
        empty.result.unwrap_err().to_string(),
        "path must not be empty"
    );
    // Only two checks fit into one evaluation.
    let check = "authorizer.path('/x').check('get').allowed()";
    let three = run(&format!("[{check}, {check}, {check}].size() == 3"));
    assert_eq!(
        three.result.unwrap_err().to_string(),
        "operation cancelled: actual cost limit exceeded"
    );
}

#[test]
fn libraries_come_with_their_versions() {
    let compiles = |minor: u16, source: &str| {
        let environment = Environment::builder(Version::new(1, minor)).build();
        environment.compile(source).is_ok()
    };
    for (minor, source) in [
        (28, "quantity('1').isInteger()"),
        (29, "sets.contains([1], [1])"),
        (30, "ip('1.1.1.1').family() == 4"),
        (31, "format.dns1123Label().validate('a').hasValue()"),
        (33, "semver('1.2.3').major() == 1"),
        (34, "[1, 2].reverse() == [2, 1]"),
    ] {
        assert!(!compiles(minor - 1, source), "{source}");
        assert!(compiles(minor, source), "{source}");
    }
}

#[test]
fn used_variables_are_known() {
    let environment = Environment::builder(Version::STORED_EXPRESSIONS)
        .variable("self", Type::Dyn)
        .variable("oldSelf", Type::Dyn)
        .variable("a.b", Type::Int)
        .build();
    let expression = environment
        .compile("self.all(k, self[k] == 1) && a.b == 1")
        .unwrap();
    assert!(expression.uses_variable("self"));
    assert!(expression.uses_variable("a.b"));
    assert!(!expression.uses_variable("oldSelf"));
}
