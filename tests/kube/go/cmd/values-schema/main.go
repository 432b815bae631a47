// Command values-schema prints values.schema.json of the chart `chronicle`: its own few values, and under them the specs of
// the resource definitions, whose files are its arguments. What the API server would refuse by name or type, Helm then refuses
// before it asks it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

type object = map[string]any

func main() {
	specs := map[string]object{}
	for _, path := range os.Args[1:] {
		kind, spec, err := specOf(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "values-schema: %s: %v\n", path, err)
			os.Exit(1)
		}
		specs[kind] = spec
	}
	for _, kind := range []string{"ChronicleCluster", "ChronicleTopic", "ChronicleUser"} {
		if specs[kind] == nil {
			fmt.Fprintf(os.Stderr, "values-schema: no file defines %s\n", kind)
			os.Exit(1)
		}
	}
	texts := object{"type": "object", "additionalProperties": object{"type": "string"}}
	schema := object{
		"$schema":              "http://json-schema.org/draft-07/schema#",
		"title":                "Values of chart chronicle. Made from the resource definitions by charts/sync.",
		"type":                 "object",
		"additionalProperties": false,
		"properties": object{
			"global":      object{"type": "object"},
			"name":        object{"type": "string", "pattern": "^(|[a-z]([-a-z0-9]*[a-z0-9])?)$", "maxLength": 40},
			"labels":      texts,
			"annotations": texts,
			"keep":        object{"type": "boolean"},
			"image": object{
				"type": "object", "additionalProperties": false,
				"properties": object{
					"repository": object{"type": "string", "minLength": 1},
					"tag":        object{"type": "string", "maxLength": 128},
					"digest":     object{"type": "string", "pattern": "^(|sha256:[0-9a-f]{64})$"},
				},
			},
			"cluster": filledIn(specs["ChronicleCluster"], "image"),
			"topics":  object{"type": "array", "items": named(specs["ChronicleTopic"])},
			"users":   object{"type": "array", "items": named(specs["ChronicleUser"])},
		},
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	if err := out.Encode(schema); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// filledIn takes a field that the chart fills in out of those that must be given.
func filledIn(spec object, name string) object {
	required, _ := spec["required"].([]any)
	required = slices.DeleteFunc(required, func(field any) bool { return field == name })
	delete(spec, "required")
	if len(required) > 0 {
		spec["required"] = required
	}
	return spec
}

// named is an element of a list of resources. The chart fills in which cluster it belongs to.
func named(spec object) object {
	spec = filledIn(spec, "clusterRef")
	return object{
		"type": "object", "additionalProperties": false, "required": []string{"name"},
		"properties": object{"name": object{"type": "string", "pattern": "^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"}, "spec": spec},
	}
}

func specOf(path string) (string, object, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	var definition apiextensions.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &definition); err != nil {
		return "", nil, err
	}
	for _, version := range definition.Spec.Versions {
		if !version.Storage || version.Schema == nil {
			continue
		}
		spec, ok := version.Schema.OpenAPIV3Schema.Properties["spec"]
		if !ok {
			return "", nil, fmt.Errorf("version %s has no spec", version.Name)
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			return "", nil, err
		}
		var plain object
		if err := json.Unmarshal(raw, &plain); err != nil {
			return "", nil, err
		}
		convert(plain)
		return definition.Spec.Names.Kind, plain, nil
	}
	return "", nil, fmt.Errorf("no version is stored")
}

// convert turns a schema as Kubernetes writes it into one that JSON Schema knows, in place.
func convert(schema object) {
	open := schema["x-kubernetes-preserve-unknown-fields"] == true
	if schema["x-kubernetes-int-or-string"] == true {
		delete(schema, "anyOf")
		schema["type"] = []any{"integer", "string"}
	}
	if schema["nullable"] == true {
		if kind, ok := schema["type"].(string); ok {
			schema["type"] = []any{kind, "null"}
		}
		if values, ok := schema["enum"].([]any); ok {
			schema["enum"] = append(values, nil)
		}
	}
	for key := range schema {
		if strings.HasPrefix(key, "x-kubernetes-") || key == "nullable" || key == "format" || key == "example" {
			delete(schema, key)
		}
	}
	if properties, ok := schema["properties"].(object); ok {
		for _, property := range properties {
			if child, ok := property.(object); ok {
				convert(child)
			}
		}
		if _, said := schema["additionalProperties"]; !said && !open {
			schema["additionalProperties"] = false
		}
	}
	for _, key := range []string{"items", "additionalProperties", "not"} {
		if child, ok := schema[key].(object); ok {
			convert(child)
		}
	}
}
