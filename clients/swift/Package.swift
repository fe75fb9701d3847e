// swift-tools-version: 6.0
import PackageDescription

let elsewhere: TargetDependencyCondition? = .when(platforms: [.linux, .android, .windows])

let package = Package(
    name: "DailyRepsBackup",
    platforms: [.iOS(.v16), .macOS(.v13), .watchOS(.v9), .tvOS(.v16), .visionOS(.v1)],
    products: [
        .library(name: "DailyRepsBackup", targets: ["DailyRepsBackup"]),
        .library(name: "DailyRepsCrypto", targets: ["DailyRepsCrypto"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-crypto", "4.0.0"..<"5.0.0"),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.4.0"),
        .package(url: "https://github.com/apple/swift-openapi-runtime", from: "1.11.0"),
        .package(url: "https://github.com/apple/swift-openapi-urlsession", from: "1.2.0"),
    ],
    targets: [
        // Keys, encryption and signing. It knows nothing of HTTP. Apple's platforms bring what it needs.
        .target(
            name: "DailyRepsCrypto",
            dependencies: [
                .product(name: "Crypto", package: "swift-crypto", condition: elsewhere),
                .product(name: "CryptoExtras", package: "swift-crypto", condition: elsewhere),
            ]
        ),
        // The generated client, and the device that is built on it.
        .target(
            name: "DailyRepsBackup",
            dependencies: [
                "DailyRepsCrypto",
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "OpenAPIRuntime", package: "swift-openapi-runtime"),
                .product(name: "OpenAPIURLSession", package: "swift-openapi-urlsession"),
            ]
        ),
        // The program of the README.
        .executableTarget(name: "Example", dependencies: ["DailyRepsBackup"], path: "Example"),
        .testTarget(
            name: "DailyRepsTests",
            dependencies: [
                "DailyRepsBackup", "DailyRepsCrypto",
                .product(name: "Crypto", package: "swift-crypto", condition: elsewhere),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "OpenAPIRuntime", package: "swift-openapi-runtime"),
            ]
        ),
    ],
    swiftLanguageModes: [.v6]
)
