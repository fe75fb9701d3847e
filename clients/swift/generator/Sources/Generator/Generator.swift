// A package needs a target. `swift run swift-openapi-generator` runs the generator.
