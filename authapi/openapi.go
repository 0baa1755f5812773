package authapi

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
)

// openAPIParts describe every route of the table, a file for each part of the API; a test holds routes and document
// together. base.json has what the whole document says of itself and what its parts share.
//
//go:embed openapi
var openAPIParts embed.FS

// openAPI is the served document.
var openAPI = func() []byte {
	b, err := joinOpenAPI(openAPIParts)
	if err != nil {
		panic("authapi: openapi: " + err.Error())
	}
	return b
}()

var openAPITag = etagOf(openAPI)

// joinOpenAPI makes one document of the parts. A path or a component that two of them have is a mistake.
func joinOpenAPI(parts fs.FS) ([]byte, error) {
	names, err := fs.Glob(parts, "openapi/*.json")
	if err != nil {
		return nil, err
	}
	doc := map[string]json.RawMessage{}
	paths := map[string]json.RawMessage{}
	components := map[string]map[string]json.RawMessage{}
	for _, name := range names {
		b, err := fs.ReadFile(parts, name)
		if err != nil {
			return nil, err
		}
		var part map[string]json.RawMessage
		var shared struct {
			Paths      map[string]json.RawMessage
			Components map[string]map[string]json.RawMessage
		}
		if err := json.Unmarshal(b, &part); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := json.Unmarshal(b, &shared); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		delete(part, "paths")
		delete(part, "components")
		if err := addParts(doc, part); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := addParts(paths, shared.Paths); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for kind, list := range shared.Components {
			if components[kind] == nil {
				components[kind] = map[string]json.RawMessage{}
			}
			if err := addParts(components[kind], list); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if doc["paths"], err = json.Marshal(paths); err != nil {
		return nil, err
	}
	if doc["components"], err = json.Marshal(components); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

func addParts(to, from map[string]json.RawMessage) error {
	for name, value := range from {
		if _, ok := to[name]; ok {
			return fmt.Errorf("%q stands in two parts", name)
		}
		to[name] = value
	}
	return nil
}

func handleOpenAPI(c *call) error {
	c.writeTagged(openAPI, openAPITag, "public, max-age=300")
	return nil
}
