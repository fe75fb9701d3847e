// swift-tools-version: 6.0
// What generates the client. It is a package of its own, so that an app that adds DailyRepsBackup does not build it.
import PackageDescription

let package = Package(
    name: "generator",
    platforms: [.macOS(.v13)],
    // 1.11.1 is the last one that Swift 6.0 can build.
    dependencies: [.package(url: "https://github.com/apple/swift-openapi-generator", exact: "1.11.1")],
    targets: [.target(name: "Generator")]
)
