package authapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"net/http"
)

// openAPISource describes every route of the table; a test holds the two together.
//
//go:embed openapi.json
var openAPISource []byte

// openAPI is the same without the white space.
var openAPI = func() []byte {
	var b bytes.Buffer
	if err := json.Compact(&b, openAPISource); err != nil {
		panic("authapi: openapi.json: " + err.Error())
	}
	return b.Bytes()
}()

func handleOpenAPI(c *call) error {
	c.ctx.SetStatusCode(http.StatusOK)
	c.ctx.Response.Header.SetContentTypeBytes(typeJSON)
	c.ctx.Response.Header.Set("Cache-Control", "public, max-age=300")
	c.ctx.Response.Header.Set("Access-Control-Allow-Origin", "*")
	c.ctx.Response.SetBodyRaw(openAPI)
	return nil
}
